//! Backup, restore and check, as somebody does them who moves a server to another disk.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;

use nexus_tests::{Cli, Server};
use reqwest::Method;
use serde_json::{Value, json};

fn event(id: &str, data: Value) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/s", "type": "t", "data": data})
}

/// Commands that need no server.
fn cli() -> Cli {
    Cli::at("http://127.0.0.1:1")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a name in UTF-8")
}

/// A run that must fail; its only line.
fn refused(args: &[&str]) -> String {
    let output = cli().run(args);
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{line}{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

/// A store with an event that was done, one that was given up, and one that nobody wanted.
async fn used(dir: &Path) -> Value {
    let server = Server::builder().data_dir(dir).start();
    let config = json!({"triggers": [{"filters": [{"exact": {"type": "t"}}]}], "retry": {"attempts_max": 1}});
    server.deploy("probe", "probe", config).await;
    server.send(event("good", json!({"sleep_ms": 1}))).await;
    server.send(event("bad", json!({"trap": true}))).await;
    server.send(json!({"specversion": "1.0", "id": "lone", "source": "/s", "type": "other"})).await;
    server.settled("good", "done").await;
    server.settled("bad", "dead").await;
    let all = everything(&server).await;
    assert_eq!(server.stop(), Some(0));
    all
}

/// What a user sees of it.
async fn everything(server: &Server) -> Value {
    let mut all = vec![server.get("/v1/dlq").await, server.get("/v1/functions").await];
    for id in ["good", "bad", "lone"] {
        all.push(server.get(&format!("/v1/events/{id}")).await);
    }
    all.into()
}

#[tokio::test]
async fn a_store_moves_and_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let (old, new, file) = (folder.path().join("old"), folder.path().join("new"), folder.path().join("one.backup"));
    let before = used(&old).await;
    let backup = cli().json(["admin", "backup", "--data-dir", text(&old), text(&file)]);
    assert_eq!((&backup["events"], &backup["dead_letters"]), (&json!(3), &json!(1)), "{backup:#}");
    assert!(refused(&["admin", "backup", "--data-dir", text(&old), text(&file)]).contains("is there already"));
    assert_eq!(cli().json(["admin", "verify", text(&file)]), backup);
    assert_eq!(cli().json(["admin", "restore", "--data-dir", text(&new), text(&file)]), backup);
    assert!(refused(&["admin", "restore", "--data-dir", text(&new), text(&file)]).contains("is not empty"));
    let check = cli().json(["admin", "check", "--data-dir", text(&new)]);
    assert_eq!((&check["healthy"], &check["problems_total"]), (&json!(true), &json!(0)), "{check:#}");

    let server = Server::builder().data_dir(&new).start();
    assert_eq!(everything(&server).await, before);
    server.send(event("after", json!({}))).await;
    server.settled("after", "done").await;
    // The one that was sent before is known as a duplicate.
    server.send(event("good", json!({}))).await;
    assert_eq!(server.get("/v1/events").await["items"].as_array().expect("items").len(), 4);
}

/// What was acknowledged before a backup began is in it, while events come in and are delivered.
#[tokio::test]
async fn a_server_that_runs_is_backed_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, new, file) = (folder.path().join("data"), folder.path().join("new"), folder.path().join("one.backup"));
    let server = Server::builder().data_dir(&data).start();
    server.deploy("noop", "noop", json!({"triggers": [{"filters": [{"exact": {"type": "t"}}]}]})).await;
    let mut before = 0;
    for n in 0..300 {
        server.send(event(&n.to_string(), json!({"n": n}))).await;
        if n == 100 {
            before = n;
            let address = server.url().to_owned();
            let to = file.clone();
            let backup = tokio::task::spawn_blocking(move || {
                Cli::at(&address).json(["admin", "backup", "--running", text(&to)])
            });
            for n in 300..350 {
                server.send(event(&n.to_string(), json!({}))).await;
            }
            let backup = backup.await.expect("a backup");
            assert!(backup["events"].as_u64() > Some(before) && backup["artifacts"] == 1, "{backup:#}");
            assert_eq!(cli().json(["admin", "verify", text(&file)]), backup);
        }
    }
    let refused = Cli::of(&server).run(["admin", "backup", "--running", text(&file)]);
    let line = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && line.contains("is there already"), "{line}");
    drop(server);
    cli().json(["admin", "restore", "--data-dir", text(&new), text(&file)]);
    assert_eq!(cli().json(["admin", "check", "--data-dir", text(&new)])["healthy"], true);
    let server = Server::builder().data_dir(&new).start();
    for n in 0..=before {
        let restored = server.settled(&n.to_string(), "done").await;
        assert_eq!(restored["invocations"].as_array().map(Vec::len), Some(1), "{restored:#}");
    }
    // Nothing is left of one that cannot be made: here there is no server.
    let gone = cli().run(["admin", "backup", "--running", text(&folder.path().join("two.backup"))]);
    assert_eq!(gone.status.code(), Some(5), "{gone:?}");
    let left: Vec<_> = fs::read_dir(folder.path()).expect("a folder").map(|e| e.expect("entry").file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

/// Twenty megabytes.
async fn filled(server: &Server) {
    for n in 0..40 {
        server.send(event(&n.to_string(), json!("x".repeat(500_000)))).await;
    }
}

#[tokio::test]
async fn nothing_is_left_of_a_backup_that_breaks_off() {
    let server = Server::start();
    filled(&server).await;
    // A link that breaks in the middle.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let to = server.url().strip_prefix("http://").expect("http").to_owned();
    let link = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a client");
        let mut upstream = std::net::TcpStream::connect(to).expect("the server");
        let mut request = [0; 4096];
        let length = client.read(&mut request).expect("a request");
        upstream.write_all(&request[..length]).expect("sent on");
        std::io::copy(&mut upstream.take(2 << 20), &mut client).expect("a part of the answer");
    });
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("cut.backup");
    let cut = Cli::at(&format!("http://{address}"));
    let cut = tokio::task::spawn_blocking(move || cut.run(["admin", "backup", "--running", text(&file)])).await;
    let cut = cut.expect("a run");
    let line = String::from_utf8_lossy(&cut.stderr).into_owned();
    assert!(cut.status.code() == Some(1) && line.contains("broke off"), "{line}");
    link.join().expect("the link");
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
}

#[tokio::test]
async fn a_client_that_takes_no_backup_keeps_nobody_from_anything() {
    let server = Server::start();
    filled(&server).await;
    let address = server.url().strip_prefix("http://").expect("http").to_owned();
    let mut client = std::net::TcpStream::connect(&address).expect("the server");
    client.write_all(format!("GET /v1/backup HTTP/1.1\r\nhost: {address}\r\n\r\n").as_bytes()).expect("sent");
    client.read_exact(&mut [0; 100]).expect("the answer's beginning");
    let (status, problem) = server.answer(server.request(Method::GET, "/v1/backup")).await;
    assert_eq!(status, 429, "one at a time: {problem}");
    server.send(event("meanwhile", json!(1))).await;
    let ended = tokio::task::spawn_blocking(move || server.stop());
    assert_eq!(ended.await.expect("it ends"), Some(0));
}

#[tokio::test]
async fn what_cannot_be_done_is_said_in_a_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, file) = (folder.path().join("data"), folder.path().join("one.backup"));
    assert!(refused(&["admin", "check", "--data-dir", text(&data)]).contains("no store"));
    let server = Server::builder().data_dir(&data).start();
    let line = refused(&["admin", "backup", "--data-dir", text(&data), text(&file)]);
    assert!(line.contains("in use"), "{line}");
    assert!(!file.exists());
    assert_eq!(server.stop(), Some(0));
    cli().text(["admin", "backup", "--data-dir", text(&data), text(&file)]);

    let mut bytes = fs::read(&file).expect("the file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).expect("it is written");
    assert!(refused(&["admin", "verify", text(&file)]).contains("not a whole backup"));
    let new = folder.path().join("new");
    assert!(refused(&["admin", "restore", "--data-dir", text(&new), text(&file)]).contains("not a whole backup"));
    assert!(!new.join("log/FORMAT").exists());
}

#[tokio::test]
async fn a_check_finds_an_artifact_that_changed() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    used(&data).await;
    assert!(cli().text(["admin", "check", "--data-dir", text(&data)]).contains("no problems"));
    let artifact = fs::read_dir(data.join("log/artifacts")).expect("artifacts").next().expect("one").expect("a name");
    let mut bytes = fs::read(artifact.path()).expect("the artifact");
    bytes[0] ^= 1;
    fs::write(artifact.path(), bytes).expect("it is written");
    let output = cli().run(["admin", "check", "--data-dir", text(&data)]);
    let found = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{found}");
    assert!(found.contains(artifact.file_name().to_str().expect("a digest")), "{found}");
    assert!(found.ends_with("1 problem\n"), "{found}");
}
