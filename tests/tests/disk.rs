//! The disk: full, freed again, taken by another, of another time, not to be written to.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nexus_tests::problem::{refused, state};
use nexus_tests::{Server, privilege, until};
use reqwest::{Method, RequestBuilder};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
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
    let server = Server::builder().data_dir(&disk.path.join("data")).config("[limits]\ndisk_reserve_mib = 16").start();
    server.deploy("noop", "noop", json!({"triggers": [{"filters": []}]})).await;
    for at in 0..20 {
        server.send(event(&format!("before-{at}"), "x")).await;
        server.settled(&format!("before-{at}"), "done").await;
    }
    let before = state(&server).await;
    // Below the reserve; at nothing at all; and each time back.
    for (round, left) in [8, 0, 0].into_iter().enumerate() {
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
        assert_eq!(state(&server).await, before, "{left} MiB left: what was there can be read, and no more is there");
        disk.free();
        let id = format!("again-{round}");
        until("events to be taken again", || async {
            let (status, _) = server.answer(post(&server, &id, "x")).await;
            (status == 202).then_some(())
        })
        .await;
        server.settled(&id, "done").await;
        // What is deleted again makes the next round begin as this one did.
        if round == 0 {
            assert_eq!(server.answer(put(&server, "probe", "probe")).await.0, 201);
            assert_eq!(server.answer(server.request(Method::DELETE, "/v1/functions/probe")).await.0, 204);
        }
        return_to(&before, &server).await;
    }
    assert_eq!(server.stop(), Some(0));
    drop(disk);
}

/// What was there before is there still.
async fn return_to(before: &Value, server: &Server) {
    let now = state(server).await;
    let ids = |state: &Value| -> Vec<String> {
        let items = state[0]["items"].as_array().expect("items");
        items.iter().map(|e| e["event"]["id"].to_string()).collect()
    };
    let now = ids(&now);
    for id in ids(before) {
        assert!(now.contains(&id), "{id} is gone");
    }
}
