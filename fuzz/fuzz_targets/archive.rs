//! A zip or tar archive from anywhere: a listing and its first files, or an error.
#![no_main]

use std::io::Write as _;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    petnet::files::read_archive(file.path());
});
