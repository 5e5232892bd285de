//! Exact replay: what was recorded of an invocation is played back to the same code, and nothing goes out into the world.

use nexus_tests::receiver::Receiver;
use nexus_tests::{Cli, Server, until};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

#[path = "exact/faults.rs"]
mod faults;
#[path = "exact/many.rs"]
mod many;

fn event(id: &str, ty: &str, data: Value) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/s", "type": ty, "data": data})
}

fn on(ty: &str) -> Value {
    json!({"triggers": [{"filters": [{"exact": {"type": ty}}]}], "egress": ["127.0.0.1:*"], "retry": {"attempts_max": 1}})
}

/// The one result of a replay, which is this.
async fn check(server: &Server, request: Value, verdict: &str, divergence: Value) -> Value {
    let replay = server.replay(request.clone()).await;
    let result = replay["results"][0].clone();
    assert_eq!((&result["verdict"], &result["divergence"]), (&json!(verdict), &divergence), "{request}: {replay:#}");
    result
}

/// A call of a function, by its event's id.
async fn call(server: &Server, path: &str, body: &str) -> String {
    let request = server.request(Method::POST, &format!("/fn/{path}"));
    let response = request.body(body.to_owned()).send().await.expect("an answer");
    let id = response.headers()["nexus-event-id"].to_str().expect("text").to_owned();
    let _ = response.bytes().await;
    id
}

#[tokio::test]
async fn whatever_a_function_learned_it_learns_again() {
    let server = Server::start();
    let receiver = Receiver::answering(StatusCode::OK).await;
    let mut config = on("t");
    config["env"] = json!({"COLOUR": "green"});
    server.deploy("probe", "probe", config.clone()).await;
    server.deploy("script", "script", on("script")).await;
    let url = receiver.url("/x").replace(':', "%3a").replace('/', "%2f");
    let mut ids = Vec::new();
    for (path, body) in [
        ("probe/random?n=100", ""),
        ("probe/clock", ""),
        ("probe/sleep?ms=20", ""),
        ("probe/env", ""),
        ("probe/request?a=b&c", "a body"),
        ("probe/big?mb=3", ""),
        ("probe/trap", ""),
        ("probe/status/503", ""),
        ("probe/log?n=5", ""),
        (&format!("probe/fan?url={url}&n=5"), ""),
        (&format!("probe/fetch?url={url}&n=2"), ""),
        ("probe/fetch?url=http%3a%2f%2felsewhere.invalid%2f", ""),
        (
            "script",
            r#"[{"do":"seed"},{"do":"insecure","n":9},{"do":"race","ns":[5,1000,100]},{"do":"spin","ns":100000}]"#,
        ),
    ] {
        ids.push((path.to_owned(), call(&server, path, body).await));
    }
    let asked = receiver.received().len();
    assert_eq!(asked, 7);
    // What was configured meanwhile does not matter: the recorded configuration is what it runs with.
    config["env"] = json!({"COLOUR": "red"});
    config["egress"] = json!([]);
    let put = server.request(Method::PUT, "/v1/functions/probe/config").json(&config);
    assert_eq!(server.answer(put).await.0, 200);
    let watched = server.get("/v1/kernel").await["mode"] != "off";
    for (path, id) in ids {
        let result = check(&server, json!({"event_id": id}), "identical", Value::Null).await;
        let effects = result["side_effects"].as_str().expect("a word on side effects");
        assert!(if watched { effects == "none" } else { effects.starts_with("not watched") }, "{path}: {effects}");
        let event = server.get(&format!("/v1/events/{id}")).await;
        let [first, again] = &event["invocations"].as_array().expect("a list")[..] else { panic!("{path}: {event:#}") };
        assert_eq!((&first["output"], &first["status"]), (&again["output"], &again["status"]), "{path}");
        assert_eq!(again["replay_of"], first["invocation_id"], "{path}");
        assert_eq!((&first["journal"]["complete"], &again["journal"]), (&json!(true), &Value::Null), "{path}");
    }
    assert_eq!(receiver.received().len(), asked, "nobody was asked again");
}

#[tokio::test]
async fn a_function_that_depends_on_a_secret_is_told_apart() {
    let server = Server::start();
    server.deploy("probe", "probe", on("t")).await;
    for (path, verdict) in [("/echo", "identical"), ("/request", "diverged")] {
        let request = server.request(Method::POST, &format!("/fn/probe{path}")).header("authorization", "Bearer hush");
        let response = request.body("x").send().await.expect("an answer");
        let id = response.headers()["nexus-event-id"].to_str().expect("text");
        let replay = server.replay(json!({"event_id": id})).await;
        let result = &replay["results"][0];
        assert_eq!(result["verdict"], verdict, "{result:#}");
        let note = result["notes"][0].as_str().is_some_and(|note| note.contains("authorization"));
        assert_eq!(note, verdict == "diverged", "{result:#}");
        assert!(!replay.to_string().contains("hush"));
    }
}

/// Members of JSON that are named are in no journal; who depends on them leaves the recording, and is told why.
#[tokio::test]
async fn fields_of_bodies_are_kept_out() {
    let server = Server::start();
    server.deploy("echo", "probe", json!({})).await;
    let mut config = on("t");
    config["journal"] = json!({"redact_fields": ["card", "pin"]});
    server.deploy("f", "script", config).await;
    let body = json!({"card": {"no": "4242-4242"}, "pin": 7890, "user": "me"}).to_string();
    let post =
        json!({"do": "post", "url": format!("{}/fn/echo/echo", server.url()), "body": body, "headers": {"x": "1"}});
    server.send(event("1", "t", json!([post]))).await;
    let event = server.settled("1", "done").await;
    let first = &event["invocations"][0];
    let id = first["invocation_id"].as_str().expect("an id");
    let journal = server.get(&format!("/v1/invocations/{id}/journal")).await.to_string();
    assert!(journal.contains("*********") && journal.contains("user") && journal.contains("me"), "{journal}");
    assert!(!journal.contains("4242") && !journal.contains("7890"), "{journal}");
    let result = check(&server, json!({"event_id": "1"}), "diverged", json!("host call")).await;
    let note = result["notes"].as_array().into_iter().flatten().any(|note| note.to_string().contains("card, pin"));
    assert!(note, "{result:#}");
    let bad = json!({"journal": {"redact_fields": ["a\"b"]}});
    let (status, problem) = server.answer(server.request(Method::PUT, "/v1/functions/f/config").json(&bad)).await;
    assert!(status == 400 && problem.to_string().contains("journal.redact_fields"), "{problem}");
}

#[tokio::test]
async fn events_are_replayed_without_emitting_and_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::builder().data_dir(folder.path()).start();
    for (name, guest) in [("probe", "probe"), ("cli", "cli"), ("module", "cli-p1"), ("noop", "noop")] {
        server.deploy(name, guest, on(name)).await;
        let data = json!({"emit": [{"type": "emitted", "data": {"a": 1}}, {"type": "emitted", "time": "2026-01-01T00:00:00Z"}]});
        server.send(event(name, name, data)).await;
        server.settled(name, "done").await;
    }
    server.stop();
    let server = Server::builder().data_dir(folder.path()).start();
    let before = server.get("/v1/events?type=emitted").await["items"].as_array().map(Vec::len);
    for name in ["probe", "cli", "module", "noop"] {
        check(&server, json!({"event_id": name}), "identical", Value::Null).await;
    }
    assert_eq!(server.get("/v1/events?type=emitted").await["items"].as_array().map(Vec::len), before);
    // By its trace: what was caused is replayed too, where it went somewhere.
    let trace = server.get("/v1/events/cli").await["trace_id"].clone();
    assert_eq!(server.replay(json!({"trace_id": trace})).await["identical"], 1);
}

#[tokio::test]
async fn an_attempt_that_failed_fails_in_the_same_way() {
    let server = Server::start();
    server.deploy("probe", "probe", on("t")).await;
    let mut slow = on("slow");
    slow["limits"] = json!({"timeout_ms": 200});
    server.deploy("slow", "probe", slow).await;
    for (id, ty, data) in [
        ("status", "t", json!({"status": 500, "log": ["about to fail"]})),
        ("trap", "t", json!({"trap": true})),
        ("memory", "t", json!({"alloc_mb": 300})),
        ("asleep", "slow", json!({"sleep_ms": 60_000})),
        ("busy", "slow", json!({"loop": true})),
    ] {
        server.send(event(id, ty, data)).await;
        server.settled(id, "dead").await;
        check(&server, json!({"event_id": id}), "identical", Value::Null).await;
        let event = server.get(&format!("/v1/events/{id}")).await;
        let statuses: Vec<_> = event["invocations"].as_array().expect("a list").iter().map(|i| &i["status"]).collect();
        assert!(statuses.len() == 2 && statuses[0] == statuses[1], "{id}: {statuses:?}");
        assert_eq!(event["status"], "dead", "{id}");
    }
}

#[tokio::test]
async fn one_attempt_of_several_is_replayed_by_its_own_id() {
    let server = Server::start();
    let vacant = nexus_tests::receiver::Vacant::new();
    let mut config = on("t");
    config["retry"] = json!({"attempts_max": 20, "backoff_ms": 20, "backoff_max_ms": 20});
    config["env"] = json!({"FORWARD_URL": format!("http://{}/", vacant.address)});
    server.deploy("forward", "webhook-forward", config).await;
    let data = json!({"order_id": "o-1", "customer": "ada", "total_cents": 1});
    server.send(event("1", "t", data)).await;
    let first = server.event_until("1", |event| event["invocations"][0]["status"] == "error").await;
    let _receiver = vacant.answering(StatusCode::OK);
    server.settled("1", "done").await;
    let id = first["invocations"][0]["invocation_id"].as_str().expect("an id");
    let result = check(&server, json!({"invocation_id": id}), "identical", Value::Null).await;
    assert_eq!(result["replay_of"], id);
    let again = result["invocation_id"].as_str().expect("an id");
    let again = server.get(&format!("/v1/invocations/{again}")).await["invocation"].clone();
    assert_eq!((&again["status"], &again["error"]), (&json!("error"), &first["invocations"][0]["error"]));
    let cli = Cli::of(&server);
    assert_eq!(cli.json(["replay", id])["results"][0]["replay_of"], id);
    let last = check(&server, json!({"event_id": "1"}), "identical", Value::Null).await;
    assert_ne!(last["replay_of"], id, "the last attempt, where none is named");
}

#[tokio::test]
async fn other_code_and_other_payloads_are_given_the_recorded_answers() {
    let server = Server::start();
    let receiver = Receiver::answering(StatusCode::OK).await;
    server.deploy("f", "script", on("t")).await;
    let fan = |paths: &[&str]| {
        let urls: Vec<_> = paths.iter().map(|path| receiver.url(path)).collect();
        json!([{"do": "wall"}, {"do": "fan", "urls": urls, "chunk": 65536}])
    };
    server.send(event("1", "t", fan(&["/a"]))).await;
    server.settled("1", "done").await;
    let same = json!({"event_id": "1", "data": fan(&["/a"])});
    let result = check(&server, same, "identical", Value::Null).await;
    assert_eq!(result["answered"], 1);
    let more = json!({"event_id": "1", "data": fan(&["/a", "/b"])});
    let result = check(&server, more.clone(), "diverged", json!("output")).await;
    assert_eq!(result["unmatched"], json!([{"request": format!("GET {}", receiver.url("/b")), "live": false}]));
    assert!(result["diff"]["at"].as_str().is_some_and(|at| at.starts_with("/data/1/")), "{result:#}");
    assert!(result["cost"]["before"]["duration_ns"].as_u64() > Some(0), "{result:#}");
    assert_eq!(receiver.received().len(), 1);
    let mut live = more;
    live["allow_live"] = true.into();
    let result = check(&server, live, "diverged", json!("output")).await;
    assert_eq!(result["unmatched"][0]["live"], true);
    assert_eq!(receiver.received().len(), 2);

    // Another version: here one that does something else altogether, and one that is the same but for its name section.
    server.deploy("f", "probe", on("t")).await;
    check(&server, json!({"event_id": "1", "function": "f"}), "diverged", json!("output")).await;
    check(&server, json!({"event_id": "1", "function": "f@2"}), "diverged", json!("output")).await;
    check(&server, json!({"event_id": "1", "function": "f@1"}), "identical", Value::Null).await;
    check(&server, json!({"event_id": "1"}), "identical", Value::Null).await;
    // One that fails where the other did not.
    let trap = json!({"event_id": "1", "function": "f@1", "data": [{"do": "trap"}]});
    check(&server, trap, "failed", json!("status")).await;
}

/// A library of the host that reaches out when it sees these words: a flaw in the host, as a deterministic replay must not have.
const REACHES_OUT: &str = r#"
    #include <stddef.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <unistd.h>
    static void *copied(void *to, const void *from, size_t n) {
        void *start = to;
        static const char words[] = "phone home";
        size_t same = 0;
        while (same < n && words[same] && ((const volatile char *)from)[same] == words[same]) same++;
        if (!words[same]) close(socket(AF_UNIX, SOCK_STREAM, 0));
        __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
        return start;
    }
    void *memcpy(void *to, const void *from, size_t n) { return copied(to, from, n); }
    void *memmove(void *to, const void *from, size_t n) {
        if ((char *)to <= (const char *)from || (char *)to >= (const char *)from + n) return copied(to, from, n);
        for (volatile char *t = to; n-- > 0;) t[n] = ((const char *)from)[n];
        return to;
    }
"#;

/// What the kernel saw is the proof: a system call by which the host can reach the outside makes the verdict, though the function did
/// the very same.
#[tokio::test]
async fn a_host_that_reaches_out_in_a_replay_is_caught() {
    if !nexus_tests::privilege::can_watch_the_kernel() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (source, library) = (folder.path().join("reaches_out.c"), folder.path().join("reaches_out.so"));
    std::fs::write(&source, REACHES_OUT).expect("room");
    let cc =
        std::process::Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).status();
    assert!(cc.is_ok_and(|status| status.success()), "a C compiler");
    let server = Server::builder().env("LD_PRELOAD", library.to_str().expect("text")).start();
    server.deploy("f", "script", on("t")).await;
    for (id, text) in [("quiet", "stay home"), ("loud", "phone home")] {
        server.send(event(id, "t", json!([{"do": "print", "text": text}]))).await;
        server.settled(id, "done").await;
    }
    let quiet = check(&server, json!({"event_id": "quiet"}), "identical", Value::Null).await;
    assert_eq!(quiet["side_effects"], "none", "{quiet:#}");
    let loud = check(&server, json!({"event_id": "loud"}), "leaked", Value::Null).await;
    let effects = loud["side_effects"].as_str().expect("text");
    assert!(effects.starts_with("socket x"), "{loud:#}");
    let said = Cli::of(&server).run(["replay", "loud"]);
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.status.code() == Some(1) && text.contains("1 leaked") && text.contains("socket x"), "{text}");
}

#[tokio::test]
async fn what_has_no_journal_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let allowed = format!("mounts_allowed = [\"{}\"]", folder.path().display());
    let server = Server::builder().setting(&allowed).start();
    let mut off = on("off");
    off["journal"] = json!({"sample": 0});
    let mut small = on("small");
    small["journal"] = json!({"bytes_max": 1024});
    let mut files = on("files");
    files["mounts"] = json!([{"host": folder.path(), "guest": "/m"}]);
    let many: Vec<_> = (0..500).map(|_| json!({"do": "wall"})).collect();
    for (name, guest, config, why) in [
        ("off", "script", off, "`journal.sample`"),
        ("small", "script", small, "`journal.bytes_max`"),
        ("files", "cli-p1", files, "folders of the host"),
    ] {
        server.deploy(name, guest, config).await;
        server.send(event(name, name, json!(many))).await;
        let event = server.settled(name, "done").await;
        let result = server.replay(json!({"event_id": name})).await["results"][0].clone();
        let said = result["divergence"].as_str().expect("why");
        assert!(result["verdict"] == "failed" && said.contains(why), "{name}: {result:#}");
        assert_eq!(result["invocation_id"], Value::Null, "it did not run");
        let reason = event["invocations"][0]["journal"]["reason"].as_str();
        assert!(name == "off" || reason.is_some_and(|reason| reason.contains(why)), "{name}: {event:#}");
    }
    server.deploy("other", "noop", json!({})).await;
    let result = server.replay(json!({"event_id": "off", "function": "other"})).await["results"][0].clone();
    assert!(result["divergence"].as_str().is_some_and(|why| why.contains("has not run on this event")), "{result:#}");
    let bad = json!({"journal": {"sample": 2}});
    let (status, problem) = server.answer(server.request(Method::PUT, "/v1/functions/off/config").json(&bad)).await;
    assert!(status == 400 && problem.to_string().contains("journal.sample"), "{problem}");
}

/// What a function read is in its journal: the files may be gone, and nothing is written again, here or on another machine.
#[tokio::test]
async fn files_are_played_back_when_they_are_gone() {
    let folder = tempfile::tempdir().expect("a folder");
    let allowed = format!("mounts_allowed = [\"{}\"]", folder.path().display());
    let server = Server::builder().setting(&allowed).start();
    let mut config = on("t");
    config["mounts"] = json!([{"host": folder.path(), "guest": "/m", "writable": true}]);
    server.deploy("f", "script", config).await;
    let read = folder.path().join("a");
    std::fs::write(&read, "what was in it").expect("a file");
    let call = |call: &str, path: &str| json!({"do": "file", "call": call, "path": path, "n": 5, "text": "new"});
    let steps = [
        call("read-stream", "a"),
        call("list", "."),
        call("stat", "a"),
        call("write-stream", "b"),
        call("read", "gone"),
    ];
    server.send(event("1", "t", json!(steps))).await;
    let event = server.settled("1", "done").await;
    assert!(event["invocations"][0]["output"].to_string().contains("what "), "{event:#}");
    std::fs::remove_file(&read).expect("it was there");
    std::fs::remove_file(folder.path().join("b")).expect("it was written");
    let watched = server.get("/v1/kernel").await["mode"] != "off";
    let result = check(&server, json!({"event_id": "1"}), "identical", Value::Null).await;
    assert!(!watched || result["side_effects"] == "none", "{result:#}");
    assert!(!folder.path().join("b").exists(), "a replay writes nothing");

    let id = event["invocations"][0]["invocation_id"].as_str().expect("an id");
    let journal = server.get(&format!("/v1/invocations/{id}/journal")).await;
    let asked = journal["items"].as_array().into_iter().flatten().filter_map(|item| item["asked"].as_str());
    assert!(asked.clone().any(|asked| asked.starts_with("open-at /m/a ")), "{journal:#}");

    let case = folder.path().join("case.json");
    std::fs::write(&case, server.get("/v1/events/1/export").await.to_string()).expect("room");
    let component = format!("{}/guests/script/script.wasm", env!("CARGO_MANIFEST_DIR"));
    let case = case.to_str().expect("text");
    let replay = Cli::at("http://127.0.0.1:1").json(["replay", case, "--component", &component]);
    assert_eq!(replay["results"][0]["verdict"], "identical", "{replay:#}");
}

#[tokio::test]
async fn the_calls_of_a_journal_can_be_read() {
    let server = Server::start();
    let receiver = Receiver::answering(StatusCode::OK).await;
    server.deploy("f", "script", on("t")).await;
    let post = json!({"do": "post", "url": receiver.url("/p"), "body": "hello", "headers": {"authorization": "hush", "x-a": "1"}});
    server.send(event("1", "t", json!([{"do": "wall"}, post]))).await;
    let event = server.settled("1", "done").await;
    let id = event["invocations"][0]["invocation_id"].as_str().expect("an id");
    let journal = server.get(&format!("/v1/invocations/{id}/journal")).await;
    assert_eq!((&journal["complete"], &journal["cut"]), (&json!(true), &json!(false)));
    let items = journal["items"].as_array().expect("a list");
    let of = |import: &str| items.iter().find(|item| item["import"] == import).unwrap_or_else(|| panic!("{journal:#}"));
    assert!(of("wasi:clocks/wall-clock.now")["answer"].as_str().is_some_and(|at| at.starts_with("20")));
    let asked = of("wasi:http/outgoing-handler.handle")["asked"].as_str().expect("text");
    assert!(asked.contains(&format!("POST {}", receiver.url("/p"))) && asked.contains("[x-a: 1]"), "{asked}");
    assert!(asked.contains("[authorization: [redacted]]"), "{asked}");
    assert!(!journal.to_string().contains("hush"));
    assert!(of("wasi:io/streams.input-stream.read")["answer"].as_str().is_some_and(|a| a.contains("received")));
    let none = server.request(Method::GET, "/v1/invocations/00000000-0000-7000-8000-000000000000/journal");
    assert_eq!(server.answer(none).await.0, 404);
}

#[tokio::test]
async fn many_events_are_replayed_by_what_they_are() {
    let server = Server::start();
    server.deploy("f", "probe", on("t")).await;
    server.deploy("g", "noop", on("t")).await;
    let batch: Vec<_> = (0..300)
        .map(|i| event(&i.to_string(), "t", if i % 10 == 0 { json!({"status": 400}) } else { json!({"emit": []}) }))
        .collect();
    let request = server.request(Method::POST, "/v1/events");
    let request = request.header("content-type", "application/cloudevents-batch+json").body(json!(batch).to_string());
    assert_eq!(server.answer(request).await.0, 202);
    for id in ["298", "290"] {
        server.settled(id, if id == "290" { "dead" } else { "done" }).await;
    }
    let all = until("all of them", async || {
        let all = server.replay(json!({"filter": {"type": "t"}})).await;
        (all["done"] == 600).then_some(all)
    })
    .await;
    assert_eq!((&all["total"], &all["identical"], &all["status"]), (&json!(600), &json!(600), &json!("done")));
    let failed = json!({"filter": {"type": "t", "function": "f", "status": "error"}});
    let replay_failed = server.replay(failed.clone()).await;
    assert_eq!((&replay_failed["total"], &replay_failed["identical"]), (&json!(30), &json!(30)), "{replay_failed:#}");

    // The candidate: what failed is to go well, and what went well is to stay as it is.
    server.deploy("f", "noop", on("t")).await;
    let mut candidate = failed;
    candidate["function"] = "f@2".into();
    let replayed = server.replay(candidate).await;
    assert_eq!((&replayed["diverged"], &replayed["failed"]), (&json!(30), &json!(0)));
    let kind = &replayed["kinds"][0];
    assert_eq!(
        (&kind["count"], &kind["verdict"], &kind["divergence"]),
        (&json!(30), &json!("diverged"), &json!("status"))
    );
    assert_eq!(kind["examples"].as_array().map(Vec::len), Some(5));

    let cli = Cli::of(&server);
    let gate = cli.run(["replay", "--type", "t", "--function", "f@1", "--fail-on", "diverged"]);
    let said = String::from_utf8_lossy(&gate.stdout).into_owned();
    assert!(gate.status.code() == Some(0) && said.contains("300 identical, 0 diverged, 0 failed"), "{said}");
    let gate = cli.run(["replay", "--type", "t", "--function", "f@2", "--fail-on", "diverged"]);
    let said = String::from_utf8_lossy(&gate.stdout).into_owned();
    assert!(gate.status.code() == Some(1) && said.contains("30 diverged: status"), "{said}");
    // Live and many: only if it is meant.
    let live = cli.run(["replay", "--type", "t", "--status", "error", "--function", "f", "--mode", "live"]);
    let said = String::from_utf8_lossy(&live.stderr).into_owned();
    assert!(live.status.code() == Some(1) && said.contains("--yes"), "{said}");
    let live = cli.json(["replay", "--type", "t", "--status", "error", "--function", "f", "--mode", "live", "--yes"]);
    assert_eq!((&live["done"], &live["failed"]), (&json!(30), &json!(0)), "redelivered to the fix");
}

#[tokio::test]
async fn a_live_replay_has_a_key_of_its_own_or_the_old_one() {
    let server = Server::start();
    server.deploy("probe", "probe", on("t")).await;
    server.send(event("1", "t", json!({}))).await;
    server.settled("1", "done").await;
    server.replay(json!({"event_id": "1", "mode": "live"})).await;
    server.replay(json!({"event_id": "1", "mode": "live", "same_key": true})).await;
    server.replay(json!({"event_id": "1"})).await;
    let event = server.get("/v1/events/1").await;
    let keys: Vec<_> = event["invocations"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|i| i["output"]["data"]["headers"]["ce-idempotencykey"].as_str().expect("a key").to_owned())
        .collect();
    assert!(keys.len() == 4 && keys[0] != keys[1] && keys[0] == keys[2] && keys[0] == keys[3], "{keys:?}");
}

#[tokio::test]
async fn an_event_is_exported_and_replayed_where_there_is_no_server() {
    let server = Server::start();
    let receiver = Receiver::answering(StatusCode::OK).await;
    let mut config = on("t");
    config["env"] = json!({"COLOUR": "green"});
    server.deploy("f", "script", config.clone()).await;
    let steps = json!([
        {"do": "print", "text": "begun"},
        {"do": "wall"},
        {"do": "random-u64"},
        {"do": "grow", "kb": 3000},
        {"do": "fan", "urls": [receiver.url("/a")], "chunk": 65536}
    ]);
    server.send(event("1", "t", steps)).await;
    server.settled("1", "done").await;
    server.deploy("probe", "probe", on("emits")).await;
    server.send(event("2", "emits", json!({"emit": [{"type": "emitted", "data": 7}]}))).await;
    server.settled("2", "done").await;
    // By then it is configured otherwise: a case has the configuration that was in force.
    config["env"] = json!({});
    server.answer(server.request(Method::PUT, "/v1/functions/f/config").json(&config)).await;

    let folder = tempfile::tempdir().expect("a folder");
    let cli = Cli::of(&server);
    let file = |id: &str| {
        let path = folder.path().join(format!("{id}.json"));
        std::fs::write(&path, cli.text(["events", "export", id])).expect("the case");
        path.display().to_string()
    };
    let (first, second) = (file("1"), file("2"));
    // One attempt of two, by its id; the event's own case has the last.
    let mut twice = on("twice");
    twice["retry"] = json!({"attempts_max": 2, "backoff_ms": 1});
    server.deploy("twice", "probe", twice).await;
    // As long as an invocation's id, and none.
    let third = "3".repeat(35) + "x";
    server.send(event(&third, "twice", json!({"status": 500}))).await;
    let attempts = server.settled(&third, "dead").await["invocations"].clone();
    assert_eq!((&attempts[0]["attempt"], &attempts[1]["attempt"]), (&json!(1), &json!(2)), "{attempts:#}");
    let attempt = file(attempts[0]["invocation_id"].as_str().expect("an id"));
    for (path, which) in [(&attempt, 1), (&file(&third), 2)] {
        let case: Value = serde_json::from_slice(&std::fs::read(path).expect("the case")).expect("JSON");
        assert_eq!(case["deliveries"][0]["outcome"]["attempt"], which, "{case:#}");
    }
    let unknown = cli.run(["events", "export", "0198c0de-5b1a-7c3e-9d0f-2a6b8c4d1e0f"]);
    assert_eq!(unknown.status.code(), Some(3), "an event's id may look like an invocation's: {unknown:?}");
    let wasm = |name: &str| {
        let path = nexus_tests::server::repository().join(format!("tests/guests/{name}/{name}.wasm"));
        path.display().to_string()
    };
    server.stop();
    let asked = receiver.received().len();

    let local = Cli::at("http://127.0.0.1:1");
    let replay = local.json(["replay", &first, "--component", &wasm("script")]);
    assert_eq!((&replay["identical"], &replay["results"][0]["source"]), (&json!(1), &json!("/s")), "{replay:#}");
    for case in [&second, &attempt] {
        let replay = local.json(["replay", case, "--component", &wasm("probe")]);
        assert_eq!(replay["identical"], 1, "{replay:#}");
    }
    let replay = local.json(["replay", &first, "--component", &wasm("probe")]);
    assert_eq!((&replay["diverged"], &replay["results"][0]["divergence"]), (&json!(1), &json!("output")));
    let data = json!([{"do": "wall"}, {"do": "trap"}]).to_string();
    let trap = local.run(["replay", &first, "--component", &wasm("script"), "--data", &data]);
    let said = String::from_utf8_lossy(&trap.stdout).into_owned();
    assert!(trap.status.code() == Some(1) && said.contains("1 failed"), "{said}");
    assert_eq!(receiver.received().len(), asked);

    // Walked through, where nobody can be asked: all of it.
    let walked = local.text(["replay", &first, "--component", &wasm("script"), "--step"]);
    let at = |text: &str| walked.find(text).unwrap_or_else(|| panic!("{text}: {walked}"));
    assert!(at("| begun") < at("wasi:clocks/wall-clock.now"), "{walked}");
    let sent = walked.lines().find(|line| line.contains("outgoing-handler.handle GET")).expect("the request");
    assert!(sent.contains("(memory ") && at("wasi:random/random 8 bytes") < at(sent), "what it grew by: {walked}");
    assert!(at("received") < at("1 identical"), "{walked}");

    for (contents, error) in
        [("{}", "no case of Nexus"), ("{\"format\":\"nexus.case.v9\"}", "nexus.case.v9"), ("[", "no case")]
    {
        let bad = folder.path().join("bad.json");
        std::fs::write(&bad, contents).expect("a file");
        let output = local.run(["replay", &bad.display().to_string(), "--component", &wasm("script")]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.code() == Some(1) && said.contains(error) && said.lines().count() == 1,
            "{contents}: {said}"
        );
    }
    let missing = local.run(["replay", &first]);
    assert_eq!(missing.status.code(), Some(2), "{}", String::from_utf8_lossy(&missing.stderr));
}

#[tokio::test]
async fn a_fix_is_tried_on_what_failed_and_then_gets_it() {
    let server = Server::start();
    let mut config = on("order.placed");
    config["journal"] = json!({"sample": 1});
    server.deploy("checkout", "order-check-flawed", config).await;
    for (id, items) in [("1", json!([{"sku": "a", "quantity": 1, "unit_price_cents": 5}])), ("2", json!([]))] {
        let order = json!({"order_id": id, "customer": "ada", "items": items});
        server.send(event(id, "order.placed", order)).await;
    }
    server.settled("1", "done").await;
    let dead = server.settled("2", "dead").await;
    assert!(dead["invocations"][0]["error"].as_str().is_some_and(|e| e.contains("unreachable")), "{dead:#}");
    let all = json!({"filter": {"type": "order.placed"}});
    assert_eq!(server.replay(all.clone()).await["identical"], 2);

    server.deploy_version("checkout", "order-check").await;
    let mut fixed = all;
    fixed["function"] = "checkout@2".into();
    let tried = server.replay(fixed).await;
    assert_eq!((&tried["identical"], &tried["diverged"]), (&json!(1), &json!(1)), "{tried:#}");
    let result =
        tried["results"].as_array().expect("a list").iter().find(|r| r["event_id"] == "2").expect("the failed one");
    assert_eq!(result["diff"], json!({"before": "trap", "after": "ok"}));
    assert_eq!(server.get("/v1/events/2").await["status"], "dead", "nothing has happened yet");
    let cli = Cli::of(&server);
    cli.text(["dlq", "retry", "--function", "checkout", "--yes"]);
    let done = server.settled("2", "done").await;
    let last = done["invocations"].as_array().and_then(|all| all.last()).expect("an attempt");
    assert_eq!((&last["version"], &last["output"]["data"]["accepted"]), (&json!(2), &json!(false)));
}
