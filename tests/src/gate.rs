//! A web server that holds every request until it is told to let go: what is in flight at once can be seen and counted.

use std::net::SocketAddr;

use axum::Router;
use tokio::sync::watch;

/// How many requests are held, how many were at most, and how many came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Right now.
    pub now: usize,
    /// At most, at any one moment.
    pub most: usize,
    /// In all.
    pub came: usize,
}

/// A web server on a free port of loopback; it ends when it is dropped.
pub struct Gate {
    /// Where it listens.
    pub address: SocketAddr,
    held: watch::Receiver<Held>,
    open: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

/// Counts a request as held for as long as it lives: also one whose client went away.
struct Counted(watch::Sender<Held>);

impl Counted {
    fn new(held: watch::Sender<Held>) -> Self {
        held.send_modify(|h| {
            h.came += 1;
            h.now += 1;
            h.most = h.most.max(h.now);
        });
        Self(held)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|h| h.now -= 1);
    }
}

impl Gate {
    /// Holds every request until [`Gate::open`].
    pub async fn closed() -> Self {
        let (sender, held) = watch::channel(Held::default());
        let (open, opened) = watch::channel(false);
        let app = Router::new().fallback(move || {
            let (sender, mut opened) = (sender.clone(), opened.clone());
            async move {
                let _counted = Counted::new(sender);
                // The gate goes only with the whole server.
                let _ = opened.wait_for(|open| *open).await;
                "let through"
            }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("address");
        let task = tokio::spawn(async move { axum::serve(listener, app).await.expect("serve") });
        Self { address, held, open, task }
    }

    /// Lets everything through, now and from now on.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// What it holds.
    pub fn held(&self) -> Held {
        *self.held.borrow()
    }

    /// Waits until this is so.
    pub async fn until(&self, condition: impl Fn(&Held) -> bool) -> Held {
        let mut held = self.held.clone();
        let wait = held.wait_for(&condition);
        let found =
            tokio::time::timeout(std::time::Duration::from_secs(60), wait).await.map(|h| *h.expect("the gate lives"));
        found.unwrap_or_else(|_| panic!("it did not come to it: {:?}", self.held()))
    }

    /// The URL of a path, percent-encoded as a query's value.
    pub fn url(&self) -> String {
        format!("http%3A%2F%2F{}%2F", self.address)
    }

    /// What a function that may call it has in its `egress`.
    pub fn egress(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}
