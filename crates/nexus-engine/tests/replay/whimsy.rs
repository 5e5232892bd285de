//! A web server that never answers the same way twice: late or at once, in pieces, in part, with trailers, or not at all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::RngExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

pub struct Whimsy {
    pub address: SocketAddr,
    asked: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Whimsy {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("address");
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                // Whoever asked may be gone.
                tokio::spawn(async move { drop(answer(stream).await) });
            }
        });
        Self { address, asked, task }
    }

    /// Connections up to now.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Whimsy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn late() {
    let micros = rand::rng().random_range(0..3000_u64);
    if micros > 1500 {
        tokio::time::sleep(Duration::from_micros(micros)).await;
    }
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = vec![0; 64 << 10];
    let _ = stream.read(&mut request).await?;
    late().await;
    let (fate, pieces, status) = {
        let mut rng = rand::rng();
        (rng.random_range(0..10_u8), rng.random_range(0..6_usize), rng.random_range(200..206_u16))
    };
    if fate == 0 {
        // No answer.
        return Ok(());
    }
    let token: u64 = rand::random();
    let trailers = if fate == 1 { "trailer: x-last\r\n" } else { "" };
    let head = format!("HTTP/1.1 {status} X\r\nx-token: {token:016x}\r\n{trailers}transfer-encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    for _ in 0..pieces {
        late().await;
        let piece: Vec<u8> = {
            let mut rng = rand::rng();
            let len = rng.random_range(1..4000_usize);
            (0..len).map(|_| rng.random()).collect()
        };
        stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
        stream.write_all(&piece).await?;
        stream.write_all(b"\r\n").await?;
    }
    if fate == 2 {
        // It breaks off.
        return Ok(());
    }
    stream.write_all(if fate == 1 { b"0\r\nx-last: 1\r\n\r\n" } else { b"0\r\n\r\n" }).await
}
