//! A disk that stands still, by seed: what has not reached it is not acknowledged, what is too much is refused at once, and when it goes
//! on nothing that was acknowledged is missing. (Reads may wait too: the database's background work can hold what they need.)

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nexus_tests::{Server, privilege, until};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use reqwest::Method;
use serde_json::json;
use tokio::task::JoinSet;

/// A file system of its own on a file, whose writes can be stopped; it goes also when the test fails.
struct Disk {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Disk {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (image, path) = (folder.path().join("image"), folder.path().join("disk"));
        std::fs::File::create(&image).and_then(|file| file.set_len(1 << 30)).expect("an image");
        std::fs::create_dir(&path).expect("a mount point");
        run(Command::new("mkfs.ext4").arg("-q").arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).args([&image, &path]));
        Self { path, _folder: folder }
    }

    /// It stands still until what is given back is dropped: before whoever waits for it, who cannot be ended otherwise.
    fn stop(&self) -> Stopped<'_> {
        run(Command::new("fsfreeze").arg("--freeze").arg(&self.path));
        Stopped(self)
    }
}

struct Stopped<'a>(&'a Disk);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        let output = Command::new("fsfreeze").arg("--unfreeze").arg(&self.0.path).output();
        if !output.as_ref().is_ok_and(|output| output.status.success()) {
            eprintln!("{} stands still: {output:?}", self.0.path.display());
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = Command::new("umount").arg("--lazy").arg(&self.path).output() {
            eprintln!("{} stays mounted: {error}", self.path.display());
        }
    }
}

fn started(data: &Path) -> Server {
    Server::builder().data_dir(data).disk_reserve_mib(1).start()
}

#[tokio::test]
async fn a_disk_that_stands_still_costs_time_and_nothing_else() {
    // Without loop devices there is nothing whose writes could be stopped.
    if !privilege::can_mount() || !Path::new("/dev/loop-control").exists() {
        return;
    }
    let seed = std::env::var("NEXUS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("NEXUS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let disk = Disk::new();
    let data = disk.path.join("data");
    let mut server = started(&data);
    server.deploy("worker", "noop", json!({"triggers": [{"filters": []}]})).await;
    let mut acknowledged = BTreeSet::new();
    let rounds = std::env::var("NEXUS_ROUNDS").map_or(3, |rounds| rounds.parse().expect("a number"));
    for round in 0..rounds {
        let id = format!("before-{round}");
        server.send(json!({"specversion": "1.0", "id": id, "source": "/s", "type": "t"})).await;
        server.settled(&id, "done").await;
        acknowledged.insert(id.clone());

        let stopped = disk.stop();
        // More than the log takes while none of it goes on.
        let mut sent = JoinSet::new();
        for n in 0..random.random_range(30..50) {
            let (id, kib) = (format!("{round}-{n}"), random.random_range(1..5_000));
            let event =
                json!({"specversion": "1.0", "id": id, "source": "/s", "type": "t", "data": "x".repeat(kib << 10)});
            let request = server
                .request(Method::POST, "/v1/events")
                .header("content-type", "application/cloudevents+json")
                .timeout(Duration::from_secs(120))
                .body(event.to_string());
            sent.spawn(async move {
                let response = request.send().await.expect("an answer");
                let again = response.headers().contains_key("retry-after");
                (id, response.status().as_u16(), again)
            });
        }
        // Those that are refused are refused now; the others wait.
        tokio::time::sleep(Duration::from_millis(random.random_range(200..1500))).await;
        while let Some(answer) = sent.try_join_next() {
            let (id, status, again) = answer.expect("an answer");
            assert!(matches!(status, 429 | 503) && again, "seed {seed}: {id} was answered with {status} by no disk");
        }
        let (status, _) = server.answer(server.request(Method::GET, "/healthz")).await;
        assert_eq!(status, 200);
        drop(stopped);
        while let Some(answer) = sent.join_next().await {
            match answer.expect("an answer") {
                (id, 202, _) => drop(acknowledged.insert(id)),
                (id, status, again) => {
                    assert!(matches!(status, 429 | 503) && again, "seed {seed}: {id} was answered with {status}")
                }
            }
        }
        if random.random() {
            server.kill();
            server = started(&data);
        }
    }
    for id in &acknowledged {
        let event = server.settled(id, "done").await;
        let attempts = event["invocations"].as_array().map_or(0, Vec::len);
        assert!((1..=2).contains(&attempts), "seed {seed}: {event:#}");
    }
    until("nothing to be left", || async {
        let page = server.get("/v1/events?limit=1000&status=pending").await;
        page["items"].as_array().is_some_and(Vec::is_empty).then_some(())
    })
    .await;
    assert_eq!(server.stop(), Some(0));
}
