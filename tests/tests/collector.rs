//! The collector beside the server: who may speak to it, and what becomes of the kernel's account when either side ends.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nexus_tests::collector::{Collector, without_capabilities};
use nexus_tests::privilege::{can_watch_the_kernel, is_root};
use nexus_tests::server::program;
use nexus_tests::{Server, until};
use reqwest::Method;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send, socket_with,
};
use serde_json::{Value, json};

/// Whether these tests can run: they take capabilities away from root's processes.
fn can_split() -> bool {
    can_watch_the_kernel() && is_root()
}

/// A function that reads files of this folder.
async fn deploy_reader(server: &Server, folder: &Path) {
    std::fs::write(folder.join("file"), "hello\n").expect("a file");
    server.deploy("files", "probe", json!({"mounts": [{"host": folder, "guest": "/data"}]})).await;
}

/// The account of an invocation that reads the file so many times.
async fn read(server: &Server, n: u32) -> Value {
    let path = format!("/fn/files/read?path=%2Fdata%2Ffile&n={n}");
    let response = server.request(Method::GET, &path).send().await.expect("an answer");
    let id = response.headers()["nexus-event-id"].to_str().expect("text").to_owned();
    server.get(&format!("/v1/events/{id}")).await["invocations"][0]["kernel"].clone()
}

/// Waits until the server's accounts are whole, and sees that they are exact.
async fn exact_again(server: &Server) {
    until("the kernel's account", async || (server.get("/v1/kernel").await["mode"] == "full").then_some(())).await;
    let kernel = read(server, 7).await;
    assert_eq!((&kernel["mode"], &kernel["complete"]), (&json!("full"), &json!(true)), "{kernel}");
    assert_eq!(kernel["syscalls"]["openat2"]["count"], 7, "{kernel}");
    let ledger = &server.get("/v1/kernel").await["syscalls"];
    assert_eq!(ledger["unattributed"], 0, "{ledger}");
}

fn builder(collector: &Collector, folder: &Path) -> nexus_tests::ServerBuilder {
    Server::builder().collector(collector.socket()).arg("--allow-mount").arg(folder.to_str().expect("text"))
}

fn capabilities(pid: u32) -> Vec<(String, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let lines = status.lines().filter(|line| line.starts_with("Cap"));
    lines
        .map(|line| {
            let (name, hex) = line.split_once(':').expect("a colon");
            (name.to_owned(), u64::from_str_radix(hex.trim(), 16).expect("hex"))
        })
        .collect()
}

#[tokio::test]
async fn privilege_is_where_it_must_be_and_nowhere_else() {
    if !can_split() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let collector = Collector::with_args(&folder.path().join("socket"), &["--listen", "127.0.0.1:0"]);
    let server = builder(&collector, folder.path()).start();
    deploy_reader(&server, folder.path()).await;
    for (name, set) in capabilities(server.pid()) {
        assert_eq!(set, 0, "{name} of the server");
    }
    for (name, set) in capabilities(collector.pid()) {
        // CAP_PERFMON is 38, CAP_BPF is 39. A program of root's is given them; it inherits none.
        assert_eq!(set & !(3 << 38), 0, "{name} of the collector: {set:x}");
    }
    exact_again(&server).await;

    let url = collector.metrics.as_deref().expect("metrics");
    let page =
        async || nexus_tests::server::client().get(url).send().await.expect("metrics").text().await.expect("text");
    let served = page().await;
    assert!(served.contains("nexus_collector_runtimes 1\n"), "{served}");
    assert!(served.contains("nexus_collector_runtimes_served_total 1\n"), "{served}");
    // Killed with threads in the middle of their work: the collector goes on, and forgets it.
    server.kill();
    until("the runtime's end", async || page().await.contains("nexus_collector_runtimes 0\n").then_some(())).await;
    assert!(page().await.contains("nexus_collector_threads 0\n"), "{}", page().await);
    let server = builder(&collector, folder.path()).start();
    deploy_reader(&server, folder.path()).await;
    exact_again(&server).await;
    assert_eq!(server.stop(), Some(0));
    let socket = collector.socket().to_owned();
    assert_eq!(collector.stop(), Some(0));
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_collector_that_dies_leaves_a_gap_that_says_so() {
    if !can_split() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let mut collector = Collector::start(&socket);
    let server = builder(&collector, folder.path()).start();
    deploy_reader(&server, folder.path()).await;
    exact_again(&server).await;
    for round in 0..3 {
        let id = format!("cut-{round}");
        let event = json!({"specversion": "1.0", "id": id, "source": "/s", "type": "t", "data": {"sleep_ms": 1500}});
        let mut config = json!({"mounts": [{"host": folder.path(), "guest": "/data"}]});
        config["triggers"] = json!([{"filters": [{"exact": {"type": "t"}}]}]);
        let put = server.request(Method::PUT, "/v1/functions/files/config").json(&config);
        assert_eq!(server.answer(put).await.0, 200);
        server.send(event).await;
        let running = async || server.get("/v1/functions/files").await["stats"]["running"].as_u64();
        until("the function to run", async || (running().await == Some(1)).then_some(())).await;
        collector.kill();
        // What it was in the middle of is not whole; what comes after has no account, and says why.
        let cut = server.settled(&id, "done").await["invocations"][0]["kernel"].clone();
        assert_eq!(cut["complete"], false, "{cut}");
        let after = read(&server, 1).await;
        assert_eq!(after["mode"], "off", "{after}");
        assert_eq!(after.as_object().expect("an account").len(), 2, "no numbers: {after}");
        assert!(after["reason"].as_str().expect("a reason").contains("collector"), "{after}");
        // Its socket is left over, and the next one takes it.
        collector = Collector::start(&socket);
        exact_again(&server).await;
    }
    assert_eq!(server.stop(), Some(0));
}

#[tokio::test]
async fn no_account_lies_while_collectors_die() {
    if !can_split() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let collector = Collector::start(&socket);
    let server = builder(&collector, folder.path()).start();
    deploy_reader(&server, folder.path()).await;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let dying = async {
        let mut collector = Some(collector);
        for round in 0..8 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            let ending = collector.take().expect("one");
            let ended = move || {
                if round % 2 == 0 {
                    ending.kill();
                } else {
                    assert_eq!(ending.stop(), Some(0));
                }
            };
            tokio::task::spawn_blocking(ended).await.expect("ended");
            collector = Some(
                tokio::task::spawn_blocking({
                    let socket = socket.clone();
                    move || Collector::start(&socket)
                })
                .await
                .expect("started"),
            );
            until("the collector", async || (server.get("/v1/kernel").await["mode"] == "full").then_some(())).await;
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        collector
    };
    let calling = async || {
        let (mut whole, mut others) = (0, 0);
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            let kernel = read(&server, 5).await;
            if kernel["mode"] == "full" && kernel["complete"] == true {
                assert_eq!(kernel["syscalls"]["openat2"]["count"], 5, "{kernel}");
                assert_eq!(kernel["syscalls"]["pread64"]["count"], 10, "{kernel}");
                let on_cpu = kernel["on_cpu_ns"].as_u64().expect("a time");
                assert!(on_cpu >= kernel["system_ns"].as_u64().expect("a time"), "{kernel}");
                whole += 1;
            } else {
                others += 1;
            }
        }
        (whole, others)
    };
    let (_collector, a, b, c) = tokio::join!(dying, calling(), calling(), calling());
    let (whole, others) = (a.0 + b.0 + c.0, a.1 + b.1 + c.1);
    assert!(whole > 10 && others > 0, "{whole} whole accounts, {others} that are not");
}

#[tokio::test]
async fn runtimes_share_a_collector() {
    if !can_split() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let collector = Collector::with_args(&folder.path().join("socket"), &["--runtimes-max", "2"]);
    let servers = [builder(&collector, folder.path()).start(), builder(&collector, folder.path()).start()];
    for server in &servers {
        deploy_reader(server, folder.path()).await;
    }
    tokio::join!(exact_again(&servers[0]), exact_again(&servers[1]));
    // As many as it was told; the next one works without.
    let third = builder(&collector, folder.path()).start();
    deploy_reader(&third, folder.path()).await;
    let kernel = read(&third, 1).await;
    assert!(kernel["reason"].as_str().expect("a reason").contains("2 runtimes are served already"), "{kernel}");
    let [first, second] = servers;
    assert_eq!(first.stop(), Some(0));
    exact_again(&third).await;
    exact_again(&second).await;
}

#[tokio::test]
async fn a_server_in_a_container_has_its_threads_watched() {
    if !can_split() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let collector = Collector::start(&folder.path().join("socket"));
    let server = builder(&collector, folder.path()).in_pid_namespace().start();
    deploy_reader(&server, folder.path()).await;
    exact_again(&server).await;
}

#[tokio::test]
async fn other_users_are_served_when_it_is_said() {
    if !can_split() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("open");
    let socket = folder.path().join("socket");
    let doctor = |group: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", &format!("--regid={group}"), "--clear-groups", "--inh-caps=-all"]);
        let output = command.arg(program()).args(["doctor", "--collector"]).arg(&socket).output().expect("it runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let line = |text: &str| text.lines().find(|line| line.contains(" collector ")).unwrap_or_default().to_owned();
    let missing = line(&doctor("65534"));
    assert!(missing.contains("nexus-collector --socket"), "{missing}");
    let collector = Collector::start(&socket);
    let outside = line(&doctor("65534"));
    assert!(outside.contains("Permission denied") && outside.contains("group"), "{outside}");
    let inside = line(&doctor("0"));
    assert!(inside.contains("user 65534 is not served here") && inside.contains("--user 65534"), "{inside}");
    assert_eq!(collector.stop(), Some(0));
    let _collector = Collector::with_args(&socket, &["--user", "65534"]);
    let served = line(&doctor("0"));
    assert!(served.starts_with("ok"), "{served}");
}

#[tokio::test]
async fn strangers_on_the_socket_are_refused() {
    if !can_split() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let collector = Collector::start(&folder.path().join("socket"));
    let address = SocketAddrUnix::new(collector.socket()).expect("an address");
    let says = |message: &[u8]| {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("one");
        connect(&socket, &address).expect("connected");
        send(&socket, message, SendFlags::NOSIGNAL).expect("sent");
        let mut answer = vec![0; 65536];
        let (len, _) = recv(&socket, &mut answer[..], RecvFlags::empty()).expect("an answer");
        answer.truncate(len);
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        answer["refused"]["why"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    };
    let load = |protocol: u32, abi: u32, threads_max: u32| {
        let load = json!({
            "protocol": protocol, "abi": abi, "version": "9.9.9", "threads_max": threads_max, "scheduling": true
        });
        json!({"load": load}).to_string().into_bytes()
    };
    for (message, expected) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "no message of ours"),
        (vec![0; 90_000], "no message of ours"),
        (vec![b'x'; 120_000], "a message of more than"),
        (b"\"calls\"".to_vec(), "must be `load`"),
        (b"{\"load\": {}}".to_vec(), "no message of ours"),
        (load(99, 4, 1), "install both from the same release"),
        (load(2, 99, 1), "of version 9.9.9"),
        (load(2, nexus_abi(), 0), "threads_max is 0"),
        (load(2, nexus_abi(), 257), "--threads-max"),
        (load(2, nexus_abi(), u32::MAX), "--threads-max"),
    ] {
        let why = says(&message);
        assert!(why.contains(expected), "{why} to {:?}", String::from_utf8_lossy(&message[..message.len().min(80)]));
    }
    // One that is served, and asks for what it must not have.
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("one");
    connect(&socket, &address).expect("connected");
    let ask = |message: &str| -> Value {
        send(&socket, message.as_bytes(), SendFlags::NOSIGNAL).expect("sent");
        let mut answer = vec![0; 65536];
        let (len, _) = recv(&socket, &mut answer[..], RecvFlags::empty()).expect("an answer");
        serde_json::from_slice(&answer[..len]).unwrap_or_else(|_| panic!("{:?}", &answer[..len]))
    };
    let loaded = ask(&String::from_utf8(load(2, nexus_abi(), 4)).expect("text"));
    assert!(loaded["loaded"].is_object(), "{loaded}");
    let refused = |answer: Value| answer["refused"]["why"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
    // A thread of another process: the collector's own.
    let foreign = json!({"register": {"slot": 0, "tid": collector.pid()}}).to_string();
    assert!(refused(ask(&foreign)).contains("has no thread"));
    let own = rustix::thread::gettid().as_raw_nonzero();
    assert!(refused(ask(&json!({"register": {"slot": 4, "tid": own}}).to_string())).contains("there is no slot 4"));
    assert_eq!(ask(&json!({"register": {"slot": 3, "tid": own}}).to_string()), "done");
    assert!(refused(ask(&json!({"register": {"slot": 3, "tid": own}}).to_string())).contains("already"));
    assert!(refused(ask("\"samples\"")).contains("no profile"));
    assert!(refused(ask("{\"profile\": {\"clock\": {\"hz\": 100000}}}")).contains("hz"));
    assert!(refused(ask(&String::from_utf8(load(2, nexus_abi(), 4)).expect("text"))).contains("already"));
    assert_eq!(ask("{\"unregister\": {\"slot\": 3}}"), "done");
    assert_eq!(ask("{\"unregister\": {\"slot\": 3}}"), "done", "nothing to be done");
    // And it still serves who is one of ours.
    let server = builder(&collector, folder.path()).start();
    deploy_reader(&server, folder.path()).await;
    exact_again(&server).await;
}

fn nexus_abi() -> u32 {
    nexus_ebpf_common::ABI_VERSION
}

#[test]
fn it_starts_only_where_it_can_work() {
    if !can_split() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let says = |command: &mut Command| {
        let output = command.stdin(Stdio::null()).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        stderr
    };
    let mut powerless = without_capabilities(&program().with_file_name("nexus-collector"), false);
    let why = says(powerless.arg("--socket").arg(&socket));
    assert!(why.contains("CAP_BPF and CAP_PERFMON"), "{why}");
    let _first = Collector::start(&socket);
    let why = says(&mut Collector::command(&socket));
    assert!(why.contains("another collector listens at"), "{why}");
    let why = says(&mut Collector::command(&folder.path().join("no/such/folder")));
    assert!(why.contains("cannot listen at"), "{why}");
    let why = says(Collector::command(&folder.path().join("other")).args(["--listen", "192.0.2.1:1"]));
    assert!(why.contains("--listen"), "{why}");
    std::fs::write(folder.path().join("file"), "precious").expect("a file");
    let why = says(&mut Collector::command(&folder.path().join("file")));
    assert!(why.contains("cannot listen at"), "{why}");
    assert_eq!(std::fs::read_to_string(folder.path().join("file")).expect("still there"), "precious");
}

#[tokio::test]
async fn any_process_is_watched_and_told_of_without_a_runtime() {
    if !can_split() {
        return;
    }
    told_of_by(nexus_tests::otlp::Collector::grpc().await, "grpc").await;
    told_of_by(nexus_tests::otlp::Collector::http().await, "http/protobuf").await;
}

async fn told_of_by(backend: nexus_tests::otlp::Collector, protocol: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    // A program of a name that no other has.
    let program = folder.path().join("nexus-seen");
    std::fs::copy("/bin/cat", &program).expect("a copy");
    // Its environment may be read because it has no capability that the collector lacks.
    let mut child = without_capabilities(&program, false)
        .env("TRACEPARENT", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let endpoint = backend.endpoint();
    let args = [
        "--watch",
        "command:nexus-seen",
        "--listen",
        "127.0.0.1:0",
        "--otlp-endpoint",
        &endpoint,
        "--otlp-protocol",
        protocol,
    ];
    let collector = Collector::with_args(&folder.path().join("socket"), &args);
    let url = collector.metrics.clone().expect("metrics");
    let page =
        async || nexus_tests::server::client().get(&url).send().await.expect("metrics").text().await.expect("text");
    let until_page = async |line: &str| {
        until(line, async || page().await.lines().any(|have| have == line).then_some(())).await;
    };
    until_page("nexus_observed_tasks_total{function=\"command:nexus-seen\"} 1").await;
    // It copies each line when it comes.
    let (mut stdin, mut stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    for _ in 0..50 {
        std::io::Write::write_all(&mut stdin, b"line\n").expect("a reader");
        std::io::Read::read_exact(&mut stdout, &mut [0; 5]).expect("a line");
    }
    let calls = "nexus_syscalls_total{owner=\"observed\",function=\"command:nexus-seen\",syscall=\"write\"} 50";
    until_page(calls).await;
    until_page("nexus_observed_complete{function=\"command:nexus-seen\"} 1").await;
    drop(stdin);
    assert!(child.wait().expect("it ends").success());
    let spans = backend.until(|spans| !spans.is_empty()).await;
    let span = nexus_tests::spans::Seen::from(&spans[0]);
    assert_eq!((span.name.as_str(), span.trace.as_str()), ("nexus-seen", "4bf92f3577b34da6a3ce929d0e0e4736"));
    assert_eq!(span.parent, "00f067aa0ba902b7");
    assert_eq!(span.attribute("nexus.kernel.syscall.write.count"), "50");
    assert_eq!(span.attribute("nexus.kernel.complete"), "true");
    assert_eq!(span.attribute("process.pid"), child.id().to_string());
    // What ended stays counted.
    assert!(page().await.contains(calls));
    assert_eq!(collector.stop(), Some(0));
}

#[tokio::test]
async fn a_child_that_outlives_its_watched_parent_is_still_counted() {
    if !can_split() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("nexus-family");
    std::fs::copy("/bin/bash", &program).expect("a copy");
    let args = ["--watch", "command:nexus-family", "--listen", "127.0.0.1:0"];
    let collector = Collector::with_args(&folder.path().join("socket"), &args);
    let url = collector.metrics.clone().expect("metrics");
    let writes = async || {
        let page = nexus_tests::server::client().get(&url).send().await.expect("metrics").text().await.expect("text");
        let name = "nexus_syscalls_total{owner=\"observed\",function=\"command:nexus-family\",syscall=\"write\"} ";
        page.lines().find_map(|line| line.strip_prefix(name)?.parse::<u64>().ok()).unwrap_or(0)
    };
    // The child is born when its parent is watched, has its name, and writes on for a while after its end.
    let marks = folder.path().join("marks");
    let script =
        format!("sleep 3; (for i in $(seq 80); do echo >> {0}; sleep 0.1; done) & sleep 2; exit 0", marks.display());
    let status = Command::new(&program).args(["-c", &script]).stdin(Stdio::null()).status().expect("it runs");
    assert!(status.success());
    let before = writes().await;
    assert!(before > 0, "the child was a part of its parent's tree");
    // The page is up to a second old, which is ten writes; there are sixty to come.
    until("what the child does now", async || (writes().await > before + 30).then_some(())).await;
}
