//! The disk: full, freed again, taken by another, of another time, not to be written to.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;

use nexus_tests::problem::{refused, state, unchanged};
use nexus_tests::{Server, ServerBuilder, privilege, until};
use reqwest::{Method, RequestBuilder};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use serde_json::{Value, json};

/// A file system of its own, in memory; it is unmounted also when the test fails.
struct Disk {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Disk {
    fn of_mib(mib: u32) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk");
        std::fs::create_dir(&path).expect("a mount point");
        let size = std::ffi::CString::new(format!("size={mib}m")).expect("an option");
        mount("nexus-test", &path, "tmpfs", MountFlags::empty(), size.as_c_str()).expect("mount a tmpfs");
        Self { path, _folder: folder }
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    /// Writes a file beside the data directory until so many MiB are left.
    fn fill_to(&self, mib: u64) {
        let stat = rustix::fs::statvfs(&self.path).expect("statvfs");
        let free = stat.f_bavail * stat.f_frsize;
        let bytes = free.saturating_sub(mib << 20);
        std::fs::write(self.filler(), vec![1; usize::try_from(bytes).expect("fits")]).expect("fill the disk");
    }

    fn free(&self) {
        std::fs::remove_file(self.filler()).expect("free the disk");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a server that a failed test leaves behind may still have files open.
        if let Err(error) = unmount(&self.path, UnmountFlags::DETACH) {
            eprintln!("{} stays mounted: {error}", self.path.display());
        }
    }
}

fn event(id: &str, data: &str) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/disk", "type": "t", "data": data})
}

fn post(server: &Server, id: &str, data: &str) -> RequestBuilder {
    let request = server.request(Method::POST, "/v1/events").header("content-type", "application/cloudevents+json");
    request.body(event(id, data).to_string())
}

fn put(server: &Server, name: &str, component: &str) -> RequestBuilder {
    let put = server.request(Method::PUT, &format!("/v1/functions/{name}"));
    put.header("content-type", "application/wasm").body(nexus_tests::server::component(component))
}

#[tokio::test]
async fn a_full_disk_refuses_and_a_freed_one_goes_on() {
    if !privilege::can_mount() {
        return;
    }
    let disk = Disk::of_mib(100);
    let server = Server::builder().data_dir(&disk.path.join("data")).disk_reserve_mib(16).start();
    server.deploy("noop", "noop", json!({"triggers": [{"filters": []}]})).await;
    let mut all: Vec<String> = (0..20).map(|at| format!("before-{at}")).collect();
    for id in &all {
        server.send(event(id, "x")).await;
        server.settled(id, "done").await;
    }
    // Below the reserve; at nothing at all; and each time back.
    for (round, left) in [8, 0, 0].into_iter().enumerate() {
        let before = state(&server).await;
        disk.fill_to(left);
        for at in 0..5 {
            let what = format!("round {round}, {left} MiB left");
            let (headers, problem) = refused(&what, post(&server, &format!("no-{round}-{at}"), "x"), 507, "").await;
            assert!(headers.contains_key("retry-after"), "{what}: {headers:?}");
            assert_eq!(problem["type"], "urn:nexus:problem:disk-full", "{what}: {problem}");
            let call = server.request(Method::GET, "/fn/noop");
            refused(&what, call, 507, "").await;
        }
        let (status, problem) = server.answer(put(&server, "probe", "probe")).await;
        assert_eq!((status, &problem["status"]), (507, &json!(507)), "{left} MiB left: {problem}");
        let (status, _) = server.answer(server.request(Method::GET, "/healthz")).await;
        assert_eq!(status, 200, "it lives");
        // What was there can be read, and no more is there.
        unchanged(&format!("{left} MiB left"), &server, &before).await;
        disk.free();
        let id = format!("again-{round}");
        until("events to be taken again", || async {
            let (status, _) = server.answer(post(&server, &id, "x")).await;
            (status == 202).then_some(())
        })
        .await;
        server.settled(&id, "done").await;
        assert_eq!(server.answer(put(&server, &format!("probe-{round}"), "probe")).await.0, 201);
        all.push(id);
    }
    let known: Vec<_> =
        state(&server).await[0]["items"].as_array().expect("items").iter().map(|e| e["event"]["id"].clone()).collect();
    let lost: Vec<_> = all.iter().filter(|id| !known.contains(&json!(id))).collect();
    assert_eq!((lost, known.len()), (Vec::new(), all.len()), "what was acknowledged is there, and nothing else");
    assert_eq!(server.stop(), Some(0));
    drop(disk);
}

/// What a server that must not start says: one line. Its exit code is 1.
fn does_not_start(what: &str, builder: &ServerBuilder) -> String {
    let (mut command, _, _folder) = builder.command();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let mut first = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut first).expect("standard output");
    if !first.is_empty() {
        child.kill().expect("it is killed");
    }
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(first, "", "{what}: it started");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{what}: {stderr}");
    // Log lines are JSON; the error is not.
    let lines: Vec<_> = stderr.lines().filter(|line| !line.starts_with('{')).collect();
    assert_eq!(lines.len(), 1, "{what}: one line: {stderr}");
    lines[0].to_owned()
}

fn says(what: &str, line: &str, names: &[&str]) {
    for name in names {
        assert!(line.contains(name), "{what}: the line does not name {name:?}: {line}");
    }
}

#[tokio::test]
async fn a_directory_has_one_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("data");
    let first = Server::builder().data_dir(&dir).start();
    let line = does_not_start("a second server", &Server::builder().data_dir(&dir));
    says("a second server", &line, &[dir.to_str().expect("text"), "another process"]);
    // The first one has not noticed.
    first.send(event("1", "x")).await;
    assert_eq!(first.stop(), Some(0));
    let next = Server::builder().data_dir(&dir).start();
    assert_eq!(next.get("/v1/events/1").await["event"]["id"], "1", "the lock goes with the process");
}

#[tokio::test]
async fn a_directory_of_another_time_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("data");
    let server = Server::builder().data_dir(&dir).start();
    server.send(event("1", "x")).await;
    assert_eq!(server.stop(), Some(0));
    let format = dir.join("log/FORMAT");
    let ours = std::fs::read_to_string(&format).expect("the format's file");
    let rows = [
        ("a newer format", "nexus-log 999\n", "999"),
        ("no format", "", "FORMAT"),
        ("something else", "hello\n", "FORMAT"),
    ];
    for (what, text, names) in rows {
        std::fs::write(&format, text).expect("another format");
        let line = does_not_start(what, &Server::builder().data_dir(&dir));
        says(what, &line, &[names]);
    }
    std::fs::remove_file(&format).expect("no format's file");
    says("no file", &does_not_start("no file", &Server::builder().data_dir(&dir)), &["FORMAT"]);
    std::fs::write(&format, ours).expect("the format's file");
    let server = Server::builder().data_dir(&dir).start();
    assert_eq!(server.get("/v1/events/1").await["event"]["id"], "1", "nothing was changed");
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_to_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "x").expect("a file");
    let rows = [
        ("a file", file.clone()),
        ("below a file", file.join("data")),
        ("below what is no folder", "/proc/nexus".into()),
    ];
    for (what, dir) in rows {
        let line = does_not_start(what, &Server::builder().data_dir(&dir));
        says(what, &line, &[dir.to_str().expect("text")]);
    }
    if !privilege::can_mount() {
        return;
    }
    let disk = Disk::of_mib(64);
    let dir = disk.path.join("data");
    let server = Server::builder().data_dir(&dir).start();
    server.send(event("1", "x")).await;
    assert_eq!(server.stop(), Some(0));
    mount_remount(&disk.path, MountFlags::RDONLY, "").expect("mount it read-only");
    let line = does_not_start("read-only", &Server::builder().data_dir(&dir));
    says("read-only", &line, &[dir.to_str().expect("text"), "Read-only"]);
    mount_remount(&disk.path, MountFlags::empty(), "").expect("mount it writable");
    let server = Server::builder().data_dir(&dir).start();
    assert_eq!(server.get("/v1/events/1").await["event"]["id"], "1", "nothing was changed");
}
