//! Observed programs: exactly the calls that strace counts.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread;

use nexus_collector::observe::{self, ObserveError};
use nexus_collector::{Probes, ProbesConfig};

type Calls = BTreeMap<String, (u64, u64)>;

/// A program whose calls do not depend on its luck, and what it needs to find each time that it runs.
struct Case {
    command: Vec<OsString>,
    prepare: Box<dyn Fn()>,
    /// Calls whose number hangs on which thread is first, and is no matter of who counts.
    luck: &'static [&'static str],
}

fn observed(probes: &Probes, case: &Case) -> Calls {
    (case.prepare)();
    let observation = observe::run(&case.command, probes).unwrap();
    assert_eq!(observation.exit_code, 0, "{:?}", case.command);
    assert_eq!((observation.kernel.complete, observation.kernel.lost), (Some(true), Some(0)));
    let calls = observation.kernel.syscalls.unwrap();
    calls.into_iter().map(|(name, stats)| (name.into_owned(), (stats.count, stats.errors))).collect()
}

fn straced(case: &Case, folder: &Path) -> Calls {
    (case.prepare)();
    let table = folder.join("strace.txt");
    let mut strace = Command::new("strace");
    strace.args(["-c", "-f", "-o"]).arg(&table).args(&case.command);
    assert!(strace.status().unwrap().success(), "{strace:?}");
    let text = fs::read_to_string(&table).unwrap();
    let lines = text.lines().skip_while(|line| !line.starts_with("------")).skip(1);
    let lines = lines.take_while(|line| !line.starts_with("------"));
    lines
        .map(|line| {
            // Share, seconds, microseconds a call, calls, errors if any, name.
            let fields: Vec<&str> = line.split_whitespace().collect();
            let errors = if fields.len() == 6 { fields[4].parse().unwrap() } else { 0 };
            ((*fields.last().unwrap()).to_owned(), (fields[3].parse().unwrap(), errors))
        })
        .collect()
}

/// Runs the case under strace twice and under the probes, and compares what strace is sure of.
fn check(name: &str, program: &str, case: impl FnOnce(&Path) -> Case) {
    for needed in ["strace", program] {
        let found = Command::new(needed).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if found.is_err() {
            return support::skip(&format!("{needed} is not installed")).unwrap_or(());
        }
    }
    let Some(probes) = support::probes(&ProbesConfig::for_observe()) else {
        return;
    };
    let folder = Folder::new(name);
    let case = case(&folder.0);
    let (first, second) = (straced(&case, &folder.0), straced(&case, &folder.0));
    // A call that strace itself counts differently each time says nothing. There must be hardly any.
    let sure = |name: &str| first.get(name) == second.get(name) && !case.luck.contains(&name);
    let of_luck = first.keys().filter(|name| !case.luck.contains(&name.as_str()) && !sure(name));
    assert!(of_luck.count() * 10 <= first.len(), "strace itself differs: {first:?} then {second:?}");
    let only_sure = |calls: &Calls| {
        let sure = calls.iter().filter(|(name, _)| sure(name));
        sure.map(|(name, counts)| (name.clone(), *counts)).collect::<Calls>()
    };
    let ours = only_sure(&observed(&probes, &case));
    let theirs = only_sure(&first);
    assert!(!theirs.is_empty());
    assert_eq!(ours, theirs, "{:?}", case.command);
}

/// A folder of this test's own, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("nexus-observe-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn command<const N: usize>(words: [&str; N]) -> Vec<OsString> {
    words.map(OsString::from).into()
}

fn file(path: &Path, content: &[u8]) -> String {
    fs::write(path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn dd_equals_strace() {
    check("dd", "dd", |folder| {
        let from = file(&folder.join("from"), &[7; 200_000]);
        let to = folder.join("to");
        let to_name = to.to_str().unwrap();
        Case {
            command: command(["dd", &format!("if={from}"), &format!("of={to_name}"), "bs=1000", "status=none"]),
            luck: &[],
            prepare: Box::new(move || drop(fs::remove_file(&to))),
        }
    });
}

#[test]
fn tar_equals_strace() {
    check("tar", "tar", |folder| {
        let tree = folder.join("tree");
        fs::create_dir_all(tree.join("deep/er")).unwrap();
        for index in 0..50 {
            file(&tree.join(format!("deep/{index}")), &vec![b'x'; index * 700]);
        }
        let archive = folder.join("tree.tar");
        Case {
            command: command(["tar", "-cf", archive.to_str().unwrap(), "-C", folder.to_str().unwrap(), "tree"]),
            luck: &[],
            prepare: Box::new(move || drop(fs::remove_file(&archive))),
        }
    });
}

#[test]
fn sqlite3_equals_strace() {
    check("sqlite3", "sqlite3", |folder| {
        let data = folder.join("test.db");
        let sql =
            "create table t(a, b); begin; insert into t values (1, 'x'), (2, 'y'); commit; delete from t where a = 1;";
        Case {
            command: command(["sqlite3", data.to_str().unwrap(), sql]),
            luck: &[],
            prepare: Box::new(move || drop(fs::remove_file(&data))),
        }
    });
}

#[test]
fn git_equals_strace() {
    check("git", "git", |folder| {
        let repository = folder.join("repository");
        Case {
            command: command(["git", "init", "--quiet", repository.to_str().unwrap()]),
            // The names of temporary files are drawn again when the dice fall badly.
            luck: &["getrandom"],
            prepare: Box::new(move || drop(fs::remove_dir_all(&repository))),
        }
    });
}

/// A dozen programs of everyday's, each in its own way: many files, pipes, children, memory, text.
#[test]
fn everyday_programs_equal_strace() {
    // `@` is the folder of the case, where there is a text and a folder of small files.
    let rows: [(&str, &[&str]); 12] = [
        ("find", &["@", "-name", "*.conf"]),
        ("grep", &["-rc", "root", "@/small"]),
        ("sort", &["-r", "@/text"]),
        ("sed", &["-n", "s/tcp/TCP/gp", "@/text"]),
        ("gzip", &["-kfc", "@/text"]),
        ("sha256sum", &["@/text", "@/small/1.conf"]),
        ("ls", &["-lR", "@/small"]),
        ("awk", &["{ n += NF } END { print n }", "@/text"]),
        ("diff", &["-r", "@/small", "@/small"]),
        ("cat", &["@/text", "@/small/1.conf"]),
        ("perl", &["-e", "print join(',', map { $_ * $_ } 1..1000); system('true')"]),
        ("bash", &["-c", "for i in 1 2 3; do cat @/text | wc -l; done"]),
    ];
    for (program, arguments) in rows {
        check(program, program, |folder| {
            let text: String = (0..400).map(|at| format!("service{at}\t{at}/tcp\t# the root of {at}\n")).collect();
            file(&folder.join("text"), text.as_bytes());
            fs::create_dir(folder.join("small")).unwrap();
            for at in 0..40 {
                file(&folder.join(format!("small/{at}.conf")), format!("root {at}\n").as_bytes());
            }
            // What they print is of no interest, and must not be of a size that changes.
            let out = std::env::temp_dir().join(format!("nexus-everyday-{}", std::process::id()));
            let words = std::iter::once(&program).chain(arguments);
            let words = words.map(|word| word.replace('@', &folder.display().to_string()));
            let words = words.map(|word| format!("'{}'", word.replace('\'', "'\\''")));
            let line = format!("exec {} > {}", words.collect::<Vec<_>>().join(" "), out.display());
            Case {
                command: command(["sh", "-c", &line]),
                prepare: Box::new(move || drop(fs::remove_file(&out))),
                luck: &[],
            }
        });
    }
    let _ = fs::remove_file(std::env::temp_dir().join(format!("nexus-everyday-{}", std::process::id())));
}

#[test]
fn a_pipeline_of_processes_equals_strace() {
    check("sh", "sh", |folder| {
        let list = file(&folder.join("list"), b"b\na\nc\n");
        // One child at a time, so that which signal meets which call is no matter of luck.
        let script = format!("for i in 1 2 3; do sort {list} > {list}.$i; ls /nonexistent 2> {list}.e || true; done");
        Case { command: command(["sh", "-c", &script]), prepare: Box::new(|| ()), luck: &[] }
    });
}

/// Another test of this program as the program to observe.
fn this_program(test: &str) -> Case {
    let program = std::env::current_exe().unwrap().into_os_string();
    let mut words = vec![program];
    words.extend(["--exact", test, "--ignored", "--test-threads=1", "--quiet"].map(OsString::from));
    Case {
        command: words,
        prepare: Box::new(|| ()),
        luck: &["futex", "mmap", "mprotect", "munmap", "madvise", "rt_sigprocmask"],
    }
}

#[test]
fn calls_that_end_with_their_thread_equal_strace() {
    check("threads", "true", |_| this_program("program_whose_threads_die_in_a_call"));
}

#[test]
#[ignore = "a program for another test to observe"]
fn program_whose_threads_die_in_a_call() {
    let (reader, _writer) = std::io::pipe().unwrap();
    let ready = Barrier::new(5);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                ready.wait();
                // Nobody writes, so this returns to nobody.
                (&reader).read_exact(&mut [0]).unwrap();
            });
        }
        ready.wait();
        (0..1000).for_each(|_| thread::yield_now());
        std::process::exit(0);
    });
}

#[test]
fn a_program_started_by_a_thread_equals_strace() {
    check("exec", "true", |_| this_program("program_whose_thread_starts_another"));
}

#[test]
#[ignore = "a program for another test to observe"]
fn program_whose_thread_starts_another() {
    let (reader, _writer) = std::io::pipe().unwrap();
    // All have made the calls that begin a thread before any ends: how many they make is then no matter of luck.
    let ready = Barrier::new(3);
    thread::scope(|scope| {
        scope.spawn(|| {
            ready.wait();
            (&reader).read_exact(&mut [0])
        });
        // It takes the leader's place, under the leader's id, and the leader and the other thread die.
        scope.spawn(|| {
            ready.wait();
            panic!("{}", Command::new("true").exec())
        });
        ready.wait();
    });
}

#[test]
fn exit_codes_are_the_programs() {
    let Some(probes) = support::probes(&ProbesConfig::for_observe()) else {
        return;
    };
    let code = |script: &str| observe::run(&command(["sh", "-c", script]), &probes).unwrap().exit_code;
    assert_eq!([code("exit 0"), code("exit 7"), code("kill -9 $$"), code("kill -TERM $$")], [0, 7, 137, 143]);
}

#[test]
fn programs_that_cannot_run_are_told_apart() {
    let Some(probes) = support::probes(&ProbesConfig::for_observe()) else {
        return;
    };
    let folder = Folder::new("refused");
    let text = file(&folder.0.join("text"), b"no program");
    let refused = |name: &str| observe::run(&[name.into()], &probes).unwrap_err();
    assert!(matches!(refused("no-such-program-here"), ObserveError::NotFound { .. }));
    assert_eq!(refused("/no/such/program").exit_code(), 127);
    assert_eq!(refused(&text).exit_code(), 126);
    assert!(matches!(observe::run(&[], &probes), Err(ObserveError::Empty)));
}

#[test]
fn trees_are_told_apart_and_leave_nothing() {
    let Some(probes) = support::probes(&ProbesConfig::for_observe()) else {
        return;
    };
    // More trees than fit at a time, one after the other, and four at a time.
    let all: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let runs = (0..20).map(|_| observe::run(&command(["true"]), &probes).unwrap());
                    runs.map(|run| (run.tasks, run.kernel.syscall_totals().unwrap().count)).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(all.len(), 80);
    assert!(all.iter().all(|run| *run == all[0] && run.0 == 1 && run.1 > 10), "{all:?}");
}

#[test]
fn more_tasks_than_fit_make_the_account_incomplete() {
    let config = ProbesConfig { observed_tasks_max: 2, ..ProbesConfig::for_observe() };
    let Some(probes) = support::probes(&config) else {
        return;
    };
    // Three shells, each waiting for the next.
    let nested = command(["sh", "-c", "sh -c 'sh -c :; :'; :"]);
    let run = observe::run(&nested, &probes).unwrap();
    assert_eq!(run.kernel.complete, Some(false));
    assert!(run.kernel.lost.unwrap() > 0);
    assert!(probes.failures().unwrap()["members_full"] > 0);
}

#[test]
fn calls_that_no_kernel_has_are_counted_as_one() {
    let Some(probes) = support::probes(&ProbesConfig::for_observe()) else { return };
    // Each of another number: a map of so many would be full.
    let script = "syscall(100_000 + $_) for 1 .. 5_000";
    let case = Case { command: command(["perl", "-e", script]), prepare: Box::new(|| {}), luck: &[] };
    let calls = observed(&probes, &case);
    assert_eq!(calls.get("other"), Some(&(5_000, 5_000)), "{calls:?}");
}
