//! Selection of the best items by a total order.

use std::cmp::Ordering;

/// Items with a total order, the better ones first.
pub(super) trait Ranked: Copy {
    /// The order; never `Equal` for two different items.
    fn rank(&self, other: &Self) -> Ordering;
}

/// The best `most` of the offered items, in memory for twice as many.
#[derive(Debug, Clone)]
pub(super) struct Best<T> {
    most: usize,
    found: Vec<T>,
    /// The worst of the best items, once there are `most` of them.
    limit: Option<T>,
}

impl<T: Ranked> Best<T> {
    pub(super) fn new(most: usize) -> Self {
        Self { most, found: Vec::new(), limit: None }
    }

    pub(super) fn offer(&mut self, one: T) {
        if self.most == 0 || self.limit.is_some_and(|limit| limit.rank(&one).is_lt()) {
            return;
        }
        self.found.push(one);
        if self.found.len() >= self.most.saturating_mul(2) {
            self.cut();
        }
    }

    pub(super) fn merge(mut self, other: Self) -> Self {
        other.found.into_iter().for_each(|one| self.offer(one));
        self
    }

    /// The best items, in their order.
    pub(super) fn sorted(mut self) -> Vec<T> {
        self.found.sort_unstable_by(T::rank);
        self.found.truncate(self.most);
        self.found
    }

    fn cut(&mut self) {
        if self.found.len() > self.most {
            let (_, limit, _) = self.found.select_nth_unstable_by(self.most - 1, T::rank);
            self.limit = Some(*limit);
            self.found.truncate(self.most);
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
        for most in [0, 1, 2, 7, 500, usize::MAX] {
            let mut halves = [Best::new(most), Best::new(most)];
            let mut all: Vec<u32> = (0..300).map(|at| at * 7919 % 301).collect();
            all.iter().enumerate().for_each(|(at, one)| halves[at % 2].offer(*one));
            let [a, b] = halves;
            all.sort_unstable();
            all.truncate(most);
            assert_eq!(a.merge(b).sorted(), all, "{most}");
        }
    }
}
