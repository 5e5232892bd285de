//! What `async-nats` alone publishes: the floor under the log in JetStream.
//!
//! `publish URL CLIENTS BATCH SECONDS` prints messages a second. Each client publishes a batch of messages to a stream in a
//! file, waits until all are acknowledged, and begins again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::jetstream::stream;
use async_nats::jetstream::{self};

/// As large as an event of the benchmark.
const MESSAGE: &[u8] = &[b'x'; 250];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().context("a URL")?;
    let mut number = || arguments.next().context("CLIENTS BATCH SECONDS")?.parse::<u64>().context("a number");
    let (clients, batch, seconds) = (number()?, number()?, number()?);
    let context = jetstream::new(async_nats::connect(url).await?);
    let config = stream::Config {
        name: "PUBLISH".into(),
        subjects: vec!["publish".into()],
        storage: stream::StorageType::File,
        ..stream::Config::default()
    };
    context.create_stream(config).await?;
    let published = Arc::new(AtomicU64::new(0));
    // One more second, to be warm.
    let until = Instant::now() + Duration::from_secs(seconds + 1);
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let (context, published) = (context.clone(), published.clone());
            tokio::spawn(async move {
                while Instant::now() < until {
                    let mut acknowledged = Vec::new();
                    for _ in 0..batch {
                        acknowledged.push(context.publish("publish", MESSAGE.into()).await?);
                    }
                    for acknowledgement in acknowledged {
                        acknowledgement.await?;
                        published.fetch_add(1, Ordering::Relaxed);
                    }
                }
                anyhow::Ok(())
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (began, before) = (Instant::now(), published.load(Ordering::Relaxed));
    for task in tasks {
        task.await??;
    }
    let count = published.load(Ordering::Relaxed) - before;
    println!("{:.0}", count as f64 / began.elapsed().as_secs_f64());
    Ok(())
}
