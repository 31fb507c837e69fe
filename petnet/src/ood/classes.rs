//! A set of class indices, written as ranges.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Classes of a source head by their indices, written as ranges separated by commas.
///
/// ```
/// use petnet::ClassSet;
///
/// let pets: ClassSet = "281-285, 151-268".parse()?; // ImageNet's cats and dogs
/// assert_eq!(pets.len(), 123);
/// assert!(pets.contains(151) && !pets.contains(269));
/// assert_eq!(pets.to_string(), "151-268, 281-285");
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClassSet {
    /// Rising, not empty, and without overlap.
    ranges: Vec<RangeInclusive<usize>>,
}

impl ClassSet {
    /// True where a class is in the set.
    pub fn contains(&self, class: usize) -> bool {
        self.ranges.iter().any(|range| range.contains(&class))
    }

    /// Number of classes, one or more.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.ranges.iter().map(|range| range.end() - range.start() + 1).sum()
    }

    /// The highest index.
    pub(crate) fn last(&self) -> Option<usize> {
        self.ranges.last().map(|range| *range.end())
    }
}

impl FromStr for ClassSet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || {
            let expected = "must be numbers and ranges separated by commas, e.g. 151-268, 281-285";
            Error::Config(format!("classes `{text}` {expected}"))
        };
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
            let (first, last) = (number(first)?, number(last)?);
            if first > last { Err(wrong()) } else { Ok(first..=last) }
        };
        let mut ranges = text.split(',').map(range).collect::<Result<Vec<_>, _>>()?;
        ranges.sort_by_key(|range| *range.start());
        if ranges.windows(2).any(|pair| pair[0].end() >= pair[1].start()) {
            return Err(wrong());
        }
        Ok(Self { ranges })
    }
}

impl fmt::Display for ClassSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.ranges.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(f, "{comma}{first}")?,
                (first, last) => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for ClassSet {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<ClassSet> for String {
    fn from(classes: ClassSet) -> Self {
        classes.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_overlap_fall_or_are_no_numbers_are_refused() {
        for text in ["", "a", "3-", "5-3", "1-4, 4-6", "1,,2", "-1", "99999999999999999999"] {
            assert!(text.parse::<ClassSet>().is_err(), "{text}");
        }
        let set: ClassSet = " 7 , 2-4".parse().unwrap();
        assert_eq!((set.len(), set.last(), set.to_string()), (4, Some(7), "2-4, 7".into()));
    }
}
