//! Tables of labels in CSV or JSON lines, by path, by file name or by digest.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use super::Split;
use crate::error::{Error, Result};
use crate::task::MAX_LABEL_BYTES;

/// Names of the column or key of the image: a path, or a file name with or without its extension.
const IMAGE_COLUMNS: [&str; 9] =
    ["path", "file_name", "filename", "file", "image_path", "image", "name", "image_id", "id"];
/// Names of the column or key of the class.
const CLASS_COLUMNS: [&str; 6] = ["label", "class", "category", "target", "species", "breed"];
/// Further names for several classes per image.
const CLASS_LIST_COLUMNS: [&str; 3] = ["labels", "classes", "tags"];
/// Names of the column or key of the split.
const SPLIT_COLUMNS: [&str; 4] = ["split", "set", "subset", "partition"];
/// Separator of the classes of one image.
const CLASS_SEPARATOR: char = '|';

/// The label of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Class names: one, or any number where [`LabelOptions::multi_label`] is true.
    pub classes: Vec<String>,
    /// The split, where the table has one.
    pub split: Option<Split>,
    /// True where the label overrides the name of the image's folder.
    pub overrides_folder: bool,
}

/// Options for reading labels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LabelOptions {
    /// True where labels that the service received without an API key override folders too.
    pub trust_unauthenticated: bool,
    /// True where a label may name any number of classes: `cat|dog`, or nothing.
    pub multi_label: bool,
}

/// Labels of images, from a table.
///
/// ```
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("labels.csv");
/// std::fs::write(&path, "path,label,split\nrex.jpg,dog,train\ntom.jpg,cat,test\n")?;
/// let labels = petnet::dataset::Labels::read(&path, Default::default())?;
/// assert_eq!(labels.len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Labels {
    by_digest: HashMap<String, Label>,
    /// Digests of images that are not to be used.
    dropped: HashSet<String>,
    by_path: HashMap<String, Label>,
    /// By the file name of a path with folders; `None` where several paths have it.
    by_name: HashMap<String, Option<Label>>,
}

/// One row, by keys in lower case.
type Row = HashMap<String, String>;

impl Labels {
    /// Reads a `.csv` file with a line of column names, or JSON lines. A column `path` (or `file_name`, `image`, `id`, ...)
    /// or the `sha256` of the file identifies the image, `label` (or `class`, `category`, ...) is its class, and `split` is
    /// optional. With [`LabelOptions::multi_label`] a label is `cat|dog`, or a list in JSON. The last row of an image
    /// counts. Rows with `authenticated: false`, as the service exports them, override neither folders nor other rows unless
    /// [`LabelOptions::trust_unauthenticated`] is true. Rows with `action: drop`, as a review writes them, leave the image out.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Dataset`] with the line of an invalid row.
    pub fn read(path: &Path, options: LabelOptions) -> Result<Self> {
        let bytes = fs::read(path).map_err(Error::io(path))?;
        Self::parse(path, &bytes, options)
    }

    pub(crate) fn parse(path: &Path, bytes: &[u8], options: LabelOptions) -> Result<Self> {
        let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
        let is_csv = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("csv"));
        let rows = if is_csv { csv_rows(bytes) } else { json_rows(bytes) };
        let mut labels = Self::default();
        for row in rows {
            let added = row.and_then(|(line, row)| {
                labels.add_row(&row, options).map_err(|reason| format!("line {line}: {reason}"))
            });
            added.map_err(|reason| Error::Dataset(format!("{}, {reason}", path.display())))?;
        }
        Ok(labels)
    }

    /// Number of labels.
    pub fn len(&self) -> usize {
        self.by_digest.len() + self.by_path.len() + self.dropped.len()
    }

    /// True where there are no labels.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of labels that do not override folders, as they were given without an API key.
    pub fn unauthenticated(&self) -> usize {
        let all = self.by_digest.values().chain(self.by_path.values());
        all.filter(|label| !label.overrides_folder).count()
    }

    /// True where labels are by path or file name.
    pub(crate) fn has_paths(&self) -> bool {
        !self.by_path.is_empty()
    }

    /// True where some label does not name exactly one class.
    pub(crate) fn has_several(&self) -> bool {
        let mut all = self.by_digest.values().chain(self.by_path.values());
        all.any(|label| label.classes.len() != 1)
    }

    /// True for an image that is not to be used.
    pub(crate) fn drops(&self, sha256: &str) -> bool {
        self.dropped.contains(sha256)
    }

    pub(crate) fn of_digest(&self, sha256: &str) -> Option<&Label> {
        self.by_digest.get(sha256)
    }

    /// The label of a path with `/` between its parts: by the whole path, or by the file name where only one row has it.
    pub(crate) fn of_path(&self, path: &str) -> Option<&Label> {
        let name = path.rsplit('/').next().unwrap_or(path);
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        let by_name =
            |name: &str| self.by_path.get(name).or_else(|| self.by_name.get(name)?.as_ref());
        self.by_path.get(path).or_else(|| by_name(name)).or_else(|| by_name(stem))
    }

    fn add_row(&mut self, row: &Row, options: LabelOptions) -> Result<(), String> {
        let find = |names: &[&str]| names.iter().find_map(|name| row.get(*name)).map(|v| v.trim());
        let columns = || {
            let mut names: Vec<&str> = row.keys().map(String::as_str).collect();
            names.sort_unstable();
            names.join(", ")
        };
        // A column of several classes takes precedence over one of a single class.
        let several = find(&CLASS_LIST_COLUMNS).filter(|_| options.multi_label);
        let text = several
            .or_else(|| find(&CLASS_COLUMNS))
            .or_else(|| find(&CLASS_LIST_COLUMNS))
            .ok_or_else(|| format!("no column `label` or `class` among: {}", columns()))?;
        let classes = classes(text, options.multi_label)?;
        let split = find(&SPLIT_COLUMNS).filter(|split| !split.is_empty()).map(|name| {
            let unknown = || format!("split `{name}` is none of train, val and test");
            Split::of_folder(name).ok_or_else(unknown)
        });
        let split = split.transpose()?;
        let authenticated = find(&["authenticated"]).is_none_or(|value| value != "false");
        let overrides_folder = authenticated || options.trust_unauthenticated;
        let label = Label { classes, split, overrides_folder };
        if let Some(digest) = row.get("sha256") {
            let digest = digest.trim().to_ascii_lowercase();
            let corrected = self.by_digest.get(&digest).is_some_and(|known| known.overrides_folder);
            if find(&["action"]) == Some("drop") {
                self.by_digest.remove(&digest);
                self.dropped.insert(digest);
            } else if label.overrides_folder || !corrected {
                self.dropped.remove(&digest);
                self.by_digest.insert(digest, label);
            }
            return Ok(());
        }
        let path = find(&IMAGE_COLUMNS).ok_or_else(|| {
            format!("no column `path`, `file_name` or `sha256` among: {}", columns())
        })?;
        let path = path.replace('\\', "/");
        let path = path.trim_start_matches("./");
        if path.is_empty() {
            return Err("the path is empty".into());
        }
        let known = self.by_path.insert(path.into(), label.clone()).is_some();
        if let Some((_, name)) = path.rsplit_once('/') {
            match self.by_name.get_mut(name) {
                Some(Some(earlier)) if known => *earlier = label,
                Some(several) => *several = None,
                None => drop(self.by_name.insert(name.into(), Some(label))),
            }
        }
        Ok(())
    }
}

/// The classes that a label names.
fn classes(text: &str, multi_label: bool) -> Result<Vec<String>, String> {
    if !multi_label && text.contains(CLASS_SEPARATOR) {
        return Err(format!("label `{text}` names several classes: allow them with `multi_label`"));
    }
    let names = text.split(CLASS_SEPARATOR).map(|name| name.trim().to_string());
    let classes: Vec<String> =
        if multi_label && text.is_empty() { Vec::new() } else { names.collect() };
    classes.iter().try_for_each(|name| validate_class(name))?;
    Ok(classes)
}

/// Checks that a class name can be the name of a folder.
pub(crate) fn validate_class(name: &str) -> Result<(), String> {
    let reason: &str = match name {
        "" => "the label is empty",
        "." | ".." => "it is a folder",
        _ if name.contains(['/', '\\']) => "it is a path",
        _ if name.chars().any(char::is_control) => "it has control characters",
        _ if name.len() > MAX_LABEL_BYTES => &format!("it has more than {MAX_LABEL_BYTES} bytes"),
        _ => return Ok(()),
    };
    Err(format!("label `{}` is no name of a class: {reason}", name.escape_debug()))
}

type Rows = Vec<Result<(usize, Row), String>>;

fn csv_rows(bytes: &[u8]) -> Rows {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(bytes);
    let columns: Vec<String> = match reader.headers() {
        Ok(names) => names.iter().map(str::to_lowercase).collect(),
        Err(error) => return vec![Err(error.to_string())],
    };
    let records = reader.records().map(|record| {
        let record = record.map_err(|error| error.to_string())?;
        let line = record.position().map_or(0, |position| position.line() as usize);
        let row = columns.iter().cloned().zip(record.iter().map(ToString::to_string));
        Ok((line, row.collect()))
    });
    records.collect()
}

fn json_rows(bytes: &[u8]) -> Rows {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let rows = lines.map(|(number, line)| {
        let object: Map<String, Value> =
            serde_json::from_str(line).map_err(|error| format!("line {}: {error}", number + 1))?;
        let row = object.into_iter().filter_map(|(key, value)| {
            let value = match value {
                Value::String(text) => text,
                Value::Number(number) => number.to_string(),
                Value::Bool(flag) => flag.to_string(),
                // A list of classes.
                Value::Array(items) => {
                    let names: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
                    names?.join(&CLASS_SEPARATOR.to_string())
                }
                Value::Null | Value::Object(_) => return None,
            };
            Some((key.to_lowercase(), value))
        });
        Ok((number + 1, row.collect()))
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(name: &str, text: &str) -> Result<Labels> {
        Labels::parse(Path::new(name), text.as_bytes(), LabelOptions::default())
    }

    #[test]
    fn tables_of_other_tools_are_read() {
        let cases = [
            ("labels.csv", "\u{feff}path,label,split\na/1.jpg,cat,valid\n"),
            ("metadata.csv", "file_name,category,set,more\n1.jpg, cat ,dev,\"x, y\"\n"),
            ("x.jsonl", "\u{feff}{\"image\":\"a/1.jpg\",\"class\":\"cat\",\"split\":\"val\"}\n\n"),
            ("train.csv", "id,breed,subset\n1,cat,validation\n"),
        ];
        let (classes, split) = (vec!["cat".into()], Some(Split::Val));
        let expected = Label { classes, split, overrides_folder: true };
        for (name, text) in cases {
            let labels = parsed(name, text).unwrap();
            assert_eq!(labels.of_path("a/1.jpg"), Some(&expected), "{name}");
            assert_eq!(labels.of_path("a/2.jpg"), None, "{name}");
        }
        let text = "{\"sha256\":\"AB\",\"label\":\"dog\",\"authenticated\":false}";
        let labels = parsed("feedback.jsonl", text).unwrap();
        assert_eq!(labels.of_digest("ab").map(|label| label.overrides_folder), Some(false));
        assert_eq!((labels.unauthenticated(), labels.has_paths()), (1, false));
    }

    #[test]
    fn a_name_that_two_rows_have_needs_its_path() {
        let labels = parsed("l.csv", "path,label\na/1.jpg,cat\nb/1.jpg,dog\n").unwrap();
        assert_eq!(labels.of_path("b/1.jpg").unwrap().classes, ["dog"]);
        assert_eq!(labels.of_path("c/1.jpg"), None);
    }

    #[test]
    fn the_last_row_of_an_image_counts_by_path_and_by_name() {
        let labels = parsed("l.csv", "path,label\na/1.jpg,cat\na/1.jpg,dog\n").unwrap();
        for path in ["a/1.jpg", "b/1.jpg"] {
            assert_eq!(labels.of_path(path).unwrap().classes, ["dog"], "{path}");
        }
        for text in ["path,label\n1.jpg,cat\na/1.jpg,dog\n", "path,label\na/1.jpg,dog\n1.jpg,cat\n"]
        {
            let labels = parsed("l.csv", text).unwrap();
            let classes =
                ["1.jpg", "a/1.jpg", "b/1.jpg"].map(|path| &labels.of_path(path).unwrap().classes);
            assert_eq!(classes, [&["cat"], &["dog"], &["cat"]], "{text}");
        }
    }

    #[test]
    fn the_last_row_of_a_digest_counts_unless_it_is_unauthenticated() {
        let text = "sha256,label,action,authenticated\naa,cat,drop,true\naa,dog,,true\naa,cat,,false\nbb,cat,,true\nbb,cat,drop,\n";
        let labels = parsed("l.csv", text).unwrap();
        assert_eq!(labels.of_digest("aa").unwrap().classes, ["dog"]);
        assert_eq!(
            (labels.drops("aa"), labels.drops("bb"), labels.of_digest("bb")),
            (false, true, None)
        );
    }

    #[test]
    fn a_label_names_several_classes_only_where_that_is_allowed() {
        let text = "path,labels\n1.jpg,cat | dog\n2.jpg,\n3.jpg,dog\n";
        let options = LabelOptions { multi_label: true, ..LabelOptions::default() };
        let labels = Labels::parse(Path::new("l.csv"), text.as_bytes(), options).unwrap();
        let classes = |path| labels.of_path(path).map(|label| label.classes.join("+"));
        assert_eq!(
            ["1.jpg", "2.jpg", "3.jpg"].map(classes),
            ["cat+dog", "", "dog"].map(|c| Some(c.into()))
        );
        let text =
            "{\"path\":\"1.jpg\",\"labels\":[\"cat\",\"dog\"]}\n{\"path\":\"2.jpg\",\"labels\":[]}";
        let labels = Labels::parse(Path::new("l.jsonl"), text.as_bytes(), options).unwrap();
        assert_eq!(labels.of_path("1.jpg").unwrap().classes, ["cat", "dog"]);
        assert_eq!(labels.of_path("2.jpg").unwrap().classes.len(), 0);
        let text = "image,tags,breed\n1.jpg,indoor|cute,pug\n";
        assert_eq!(parsed("l.csv", text).unwrap().of_path("1.jpg").unwrap().classes, ["pug"]);
        let labels = Labels::parse(Path::new("l.csv"), text.as_bytes(), options).unwrap();
        assert_eq!(labels.of_path("1.jpg").unwrap().classes, ["indoor", "cute"]);
        for text in ["path,label\n1.jpg,cat||dog\n", "path,label\n1.jpg,cat|../dog\n"] {
            assert!(Labels::parse(Path::new("l.csv"), text.as_bytes(), options).is_err(), "{text}");
        }
        let error = parsed("l.csv", "path,label\n1.jpg,cat|dog\n").unwrap_err().to_string();
        assert!(error.contains("line 2: label `cat|dog` names several classes"), "{error}");
    }

    #[test]
    fn errors_name_the_line() {
        for (name, text, reason) in [
            ("l.csv", "path,label\n1.jpg,cat\n2.jpg,../dog\n", "line 3: label `../dog` is no name"),
            (
                "l.csv",
                "path,label\n1.jpg,\n",
                "line 2: label `` is no name of a class: the label is empty",
            ),
            ("l.csv", "photo,kind\n1.jpg,cat\n", "no column `label` or `class` among: kind, photo"),
            ("l.csv", "path,label,split\n1.jpg,cat,holdout\n", "split `holdout` is none of"),
            ("l.jsonl", "{\"label\":\"cat\"}", "no column `path`"),
            ("l.jsonl", "{\"path\":\"a\",\"label\":\"cat\"}\n{", "line 2: EOF"),
        ] {
            let error = parsed(name, text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
