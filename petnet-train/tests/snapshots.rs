//! Help and error texts of the real program, compared with the files in `snapshots/`. Review a change with
//! `cargo insta review`, or run the tests with `INSTA_UPDATE=always` and read the difference.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{run, succeed};

#[test]
fn help_of_each_subcommand() {
    let root = tempfile::tempdir().unwrap();
    let help = succeed(root.path(), &["--help"]);
    insta::assert_snapshot!("help", help);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    for line in commands.take_while(|line| !line.is_empty()) {
        let command = line.split_whitespace().next().unwrap();
        if command != "help" {
            insta::assert_snapshot!(command, succeed(root.path(), &[command, "--help"]));
        }
    }
}

#[test]
fn messages_for_wrong_use() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("typo.yaml"), "batch_sise: 4\n").unwrap();
    std::fs::write(root.path().join("type.yaml"), "augmentation: {rotation: much}\n").unwrap();
    std::fs::write(root.path().join("junk.safetensors"), "junk").unwrap();
    let wrong: [&[&str]; 9] = [
        &["fit", "--config", "none.yaml"],
        &["fit", "--config", "typo.yaml"],
        &["fit", "--config", "type.yaml"],
        &["fit", "--set", "augmentation.rotatoin=3"],
        &["fit", "--data", "nowhere"],
        &["predict", "--model", "junk.safetensors", "junk.safetensors"],
        &["evaluate", "--model", "pretrained", "--data", "nowhere"],
        &["prepare", "--raw", "nowhere", "--out", "data"],
        &["predcit"],
    ];
    let mut texts = String::new();
    for arguments in wrong {
        let output = run(root.path(), arguments);
        let (status, errors) =
            (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap());
        texts +=
            &format!("$ petnet-train {}\n{errors}exit status {status}\n\n", arguments.join(" "));
    }
    insta::assert_snapshot!("errors", texts);
}
