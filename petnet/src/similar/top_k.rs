//! Selection of the best items by a total order.

use std::cmp::Ordering;

/// Items with a total order, the better ones first.
pub(super) trait Ranked: Copy {
    /// The order; never `Equal` for two different items.
    fn rank(&self, other: &Self) -> Ordering;
}

/// The best `k` of the offered items, in memory for twice as many.
#[derive(Debug, Clone)]
pub(super) struct TopK<T> {
    k: usize,
    items: Vec<T>,
    /// The worst of the best items, once there are `k` of them.
    limit: Option<T>,
}

impl<T: Ranked> TopK<T> {
    pub(super) fn new(k: usize) -> Self {
        Self { k, items: Vec::new(), limit: None }
    }

    pub(super) fn push(&mut self, item: T) {
        if self.k == 0 || self.limit.is_some_and(|limit| limit.rank(&item).is_lt()) {
            return;
        }
        self.items.push(item);
        if self.items.len() >= self.k.saturating_mul(2) {
            self.truncate_to_k();
        }
    }

    pub(super) fn merge(mut self, other: Self) -> Self {
        other.items.into_iter().for_each(|item| self.push(item));
        self
    }

    /// The best items, in their order.
    pub(super) fn sorted(mut self) -> Vec<T> {
        self.items.sort_unstable_by(T::rank);
        self.items.truncate(self.k);
        self.items
    }

    fn truncate_to_k(&mut self) {
        if self.items.len() > self.k {
            let (_, limit, _) = self.items.select_nth_unstable_by(self.k - 1, T::rank);
            self.limit = Some(*limit);
            self.items.truncate(self.k);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Ranked for u32 {
        fn rank(&self, other: &Self) -> Ordering {
            self.cmp(other)
        }
    }

    #[test]
    fn the_best_are_those_of_a_sort() {
        for k in [0, 1, 2, 7, 500, usize::MAX] {
            let mut halves = [TopK::new(k), TopK::new(k)];
            let mut all: Vec<u32> = (0..300).map(|at| at * 7919 % 301).collect();
            all.iter().enumerate().for_each(|(at, item)| halves[at % 2].push(*item));
            let [a, b] = halves;
            all.sort_unstable();
            all.truncate(k);
            assert_eq!(a.merge(b).sorted(), all, "{k}");
        }
    }
}
