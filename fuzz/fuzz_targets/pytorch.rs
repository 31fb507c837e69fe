//! A PyTorch file from anywhere: a model of two classes, or an error.
#![no_main]

use std::io::Write as _;

use libfuzzer_sys::fuzz_target;
use petnet::pytorch::Import;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let _ = Import::class_names(file.path());
    let labels = vec!["cat".into(), "dog".into()];
    let _ = Import { labels, ..Import::default() }.read(file.path());
});
