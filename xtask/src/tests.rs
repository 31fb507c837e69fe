use std::collections::BTreeSet;
use std::fs;

use super::*;

/// Shell scripts, and Python scripts that are executable: the others are parts of a shell script.
fn scripts() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(root().join("scripts")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.ends_with(".sh") || name.ends_with(".py") && executable(&entry.metadata().unwrap())
        {
            found.insert(format!("scripts/{name}"));
        }
    }
    found
}

#[cfg(unix)]
fn executable(file: &fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.permissions().mode() & 0o100 != 0
}

/// Other systems have no such bit; the table is tested where it exists.
#[cfg(not(unix))]
fn executable(_: &fs::Metadata) -> bool {
    false
}

#[test]
fn every_script_is_a_task_and_every_task_has_its_script() {
    let listed: BTreeSet<String> = tasks()
        .filter_map(|task| task.command.split(' ').next())
        .filter(|program| program.starts_with("scripts/"))
        .filter(|program| cfg!(unix) || program.ends_with(".sh"))
        .map(str::to_owned)
        .collect();
    assert_eq!(listed, scripts());
    assert!(root().join(".ci/run").is_file());
}

#[test]
fn names_are_unique_and_each_is_listed() {
    let names: BTreeSet<_> = tasks().map(|task| task.name).collect();
    assert_eq!(names.len(), tasks().count());
    assert_eq!(list().lines().filter(|line| line.starts_with("  ")).count(), names.len());
}

#[test]
fn workflows_run_only_tasks_that_exist() {
    for entry in fs::read_dir(root().join(".github/workflows")).unwrap() {
        let path = entry.unwrap().path();
        for line in fs::read_to_string(&path).unwrap().lines() {
            let Some((_, rest)) = line.split_once("cargo xtask ") else { continue };
            let name = rest.split(' ').next().unwrap();
            assert!(tasks().any(|task| task.name == name), "{}: {line}", path.display());
        }
    }
}

#[test]
fn workflows_and_images_pin_the_rust_version_of_the_manifest() {
    let text = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let manifest = text("Cargo.toml");
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap();
    for path in [".github/workflows/ci.yml", ".github/workflows/release.yml"] {
        assert!(text(path).contains(&format!("RUSTUP_TOOLCHAIN: {version}\n")), "{path}");
    }
    let image = format!("rust:{}-slim", version.trim_matches('"'));
    assert!(text("Dockerfile").contains(&image), "Dockerfile");
}
