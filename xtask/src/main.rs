//! `cargo xtask` lists the tasks of this repository, `cargo xtask NAME [ARGUMENTS]` runs one.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

mod table;

use table::{GROUPS, Task, tasks};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(name) = arguments.next().filter(|name| name != "--help" && name != "-h") else {
        print!("{}", list());
        return ExitCode::SUCCESS;
    };
    let Some(task) = tasks().find(|task| task.name == name) else {
        eprintln!("error: no task {name}; `cargo xtask` lists them");
        return ExitCode::from(2);
    };
    match command(task, arguments).status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        // Without a code, a signal ended it.
        Ok(status) => {
            ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
        }
        Err(error) => {
            eprintln!("error: {}: {error}", task.command);
            ExitCode::FAILURE
        }
    }
}

/// The task's command in the root of the repository, with further arguments behind its own.
fn command(task: &Task, arguments: impl Iterator<Item = String>) -> Command {
    let mut words = task.command.split(' ');
    let program = words.next().unwrap_or_default();
    // Paths are relative to the root of the repository, programs are searched for in PATH.
    let program = if program.contains('/') { root().join(program) } else { PathBuf::from(program) };
    let mut command = Command::new(program);
    command.args(words).args(arguments).current_dir(root());
    command
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask/ lies in the root of the repository")
}

/// Every task by group: name, purpose, duration and requirements.
fn list() -> String {
    let mut text = String::from("cargo xtask NAME [ARGUMENTS]\n");
    let width = tasks().map(|task| task.name.len()).max().unwrap_or_default();
    for (group, tasks) in GROUPS {
        text += &format!("\n{group}\n");
        for task in *tasks {
            text += &format!("  {:width$}  {} ({})\n", task.name, task.purpose, notes(task));
        }
    }
    text
}

fn notes(task: &Task) -> String {
    let time = match task.minutes {
        0 => "seconds".to_owned(),
        minutes => format!("{minutes} min"),
    };
    if task.needs.is_empty() { time } else { format!("{time}; needs {}", task.needs) }
}

#[cfg(test)]
mod tests;
