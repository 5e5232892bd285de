//! Every command helps with an example, and wrong usage has its exit code.

use std::process::{Command, Output};

fn nexus(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nexus")).args(args).env_remove("NEXUS_URL").output().expect("the program runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn every_command_helps_with_an_example() {
    let help = stdout(&nexus(&["--help"]));
    let commands: Vec<_> = help
        .lines()
        .skip_while(|l| !l.starts_with("Commands:"))
        .skip(1)
        .take_while(|l| !l.trim().is_empty())
        .filter_map(|l| l.strip_prefix("  ").filter(|l| !l.starts_with(' '))?.split_whitespace().next())
        .filter(|c| *c != "help")
        .collect();
    assert!(commands.len() >= 14, "{commands:?}");
    for command in commands {
        let output = nexus(&[command, "--help"]);
        assert!(output.status.success(), "{command}");
        assert!(stdout(&output).contains("Example"), "{command} --help has no example");
    }
}

#[test]
fn exit_codes_tell_the_kind_of_failure() {
    let check = |args: &[&str], code: i32| {
        let output = nexus(args);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}");
    };
    check(&["no-such-command"], 2);
    check(&["send", "--data", "{broken"], 2);
    check(&["replay"], 2);
    // Nothing listens on port 1.
    check(&["--url", "http://127.0.0.1:1", "functions"], 5);
    check(&["--url", "not a url", "functions"], 2);
    check(&["dev", "/no/such/folder"], 3);
    check(&["deploy", "/no/such/file.wasm"], 3);
}
