//! The layers that are not trained.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The layers that are not trained, and run as in inference; written `0`, a number of blocks, or `backbone`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Freeze {
    /// None: all layers are trained.
    Nothing,
    /// The first blocks, by their number, and the layers before them.
    Blocks(usize),
    /// All but the last layer; hidden layers of the head are frozen, too.
    Backbone,
}

impl std::fmt::Display for Freeze {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => f.write_str("0"),
            Self::Blocks(blocks) => blocks.fmt(f),
            Self::Backbone => f.write_str("backbone"),
        }
    }
}

/// The form in settings: a number, or a word.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum FreezeText {
    Blocks(usize),
    Word(String),
}

impl Serialize for Freeze {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = match self {
            Self::Nothing => FreezeText::Blocks(0),
            Self::Blocks(blocks) => FreezeText::Blocks(*blocks),
            Self::Backbone => FreezeText::Word("backbone".into()),
        };
        text.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Freeze {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match FreezeText::deserialize(deserializer)? {
            FreezeText::Blocks(0) => Ok(Self::Nothing),
            FreezeText::Blocks(blocks) => Ok(Self::Blocks(blocks)),
            FreezeText::Word(word) if word == "backbone" => Ok(Self::Backbone),
            FreezeText::Word(word) => {
                let expected =
                    format!("freeze is `{word}`, must be a number of blocks or `backbone`");
                Err(serde::de::Error::custom(expected))
            }
        }
    }
}
