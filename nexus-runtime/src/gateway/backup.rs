//! `/v1/backup`: everything in the log, as it is at one moment, while the server goes on.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{StatusCode, header};
use nexus_log::StorageError;
use nexus_log::embedded::admin::{AdminError, Running};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::problem::Problem;

/// Bytes that are sent at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks that wait for a slow client.
const CHUNKS_MAX: usize = 4;
/// How long a client may take none: what is backed up is kept from retention, and from being closed.
const CLIENT_PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks whether it takes one.
const PAUSE: Duration = Duration::from_millis(2);

type Chunk = Result<Bytes, io::Error>;

/// The file that `nexus admin backup` makes. An answer that was not whole breaks off, and its end is missing.
pub async fn take(State(gateway): State<Shared>) -> Result<Response, Problem> {
    let Some(store) = gateway.store.clone() else {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "log-in-nats",
            "this server's log is in NATS: back up the NATS cluster, as with `nats stream backup`",
        ));
    };
    let Ok(alone) = gateway.backups.clone().try_acquire_owned() else {
        let busy = "a backup is being made already";
        return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "busy", busy).retry_after(10));
    };
    let (sender, mut receiver) = mpsc::channel(CHUNKS_MAX);
    let stop = gateway.stop.clone();
    let chunk = Vec::with_capacity(CHUNK_BYTES);
    let writer = Chunks { chunk, sender: sender.clone(), store: store.clone(), stop: stop.clone() };
    let (began, begun) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let _alone = alone;
        let stopping = move |_| if stop.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let written = match store.backup(writer, stopping).await {
            Ok((mut writer, _)) => tokio::task::spawn_blocking(move || writer.flush()).await.map_err(io::Error::other),
            Err(error) => {
                tracing::warn!(%error, "a backup was not finished");
                // Nobody waits for it where a part has gone out.
                let _ = began.send(error);
                Ok(Err(io::ErrorKind::BrokenPipe.into()))
            }
        };
        if let Err(error) | Ok(Err(error)) = written {
            // The client may have gone away.
            let _ = sender.send(Err(error)).await;
        }
    });
    let first = match receiver.recv().await {
        Some(Ok(first)) => first,
        Some(Err(_)) | None => return Err(refused(begun.await.ok())),
    };
    drop(begun);
    let chunks = futures_util::stream::unfold((Some(Ok(first)), receiver), |(first, mut receiver)| async move {
        let next: Option<Chunk> = match first {
            Some(first) => Some(first),
            None => receiver.recv().await,
        };
        next.map(|chunk| (chunk, (None, receiver)))
    });
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"nexus.backup\""),
    ];
    Ok((headers, Body::from_stream(chunks)).into_response())
}

fn refused(error: Option<AdminError>) -> Problem {
    match error {
        Some(AdminError::Storage(error)) => error.into(),
        Some(AdminError::Stopped) | None => StorageError::Closed.into(),
        Some(error) => StorageError::Failed(error.to_string()).into(),
    }
}

/// Hands on what is written, from a thread that may wait.
struct Chunks {
    chunk: Vec<u8>,
    sender: mpsc::Sender<Chunk>,
    store: Running,
    stop: CancellationToken,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.chunk.extend_from_slice(bytes);
        if self.chunk.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let mut chunk = Ok(std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_BYTES)).into());
        let began = Instant::now();
        loop {
            chunk = match self.sender.try_send(chunk) {
                Ok(()) => return Ok(()),
                // The client has gone away.
                Err(TrySendError::Closed(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(TrySendError::Full(chunk)) => chunk,
            };
            if self.stop.is_cancelled() || !self.store.is_open() || began.elapsed() > CLIENT_PATIENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not take it"));
            }
            std::thread::sleep(PAUSE);
        }
    }
}
