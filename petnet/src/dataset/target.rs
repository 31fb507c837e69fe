//! The classes of an image.

/// The classes of an image, by their index among [`Dataset::classes`](super::Dataset::classes).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The one class of an image of a single-label data set.
    Class(usize),
    /// Any number of classes, or none, in rising order: an image of a multi-label data set.
    Classes(Vec<usize>),
}

impl Target {
    /// Its classes: exactly one, or any number for a multi-label data set.
    ///
    /// ```
    /// use petnet::dataset::Target;
    ///
    /// assert_eq!(Target::Class(2).classes(), [2]);
    /// assert_eq!(Target::Classes(vec![0, 2]).classes(), [0, 2]);
    /// assert_eq!(Target::Classes(vec![0]).class(), None);
    /// ```
    pub fn classes(&self) -> &[usize] {
        match self {
            Self::Class(class) => std::slice::from_ref(class),
            Self::Classes(classes) => classes,
        }
    }

    /// The class of a single-label data set's image; `None` for a multi-label data set.
    pub fn class(&self) -> Option<usize> {
        match self {
            Self::Class(class) => Some(*class),
            Self::Classes(_) => None,
        }
    }

    /// The classes under new numbers.
    pub(super) fn renumbered(&self, numbers: &[usize]) -> Self {
        match self {
            Self::Class(class) => Self::Class(numbers[*class]),
            Self::Classes(classes) => {
                let mut classes: Vec<usize> = classes.iter().map(|class| numbers[*class]).collect();
                classes.sort_unstable();
                Self::Classes(classes)
            }
        }
    }
}
