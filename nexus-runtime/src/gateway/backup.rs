//! `/v1/backup`: everything in the log, as it is at one moment, while the server goes on.

use std::io::{self, Write};
use std::ops::ControlFlow;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{StatusCode, header};
use nexus_log::StorageError;
use nexus_log::embedded::admin::AdminError;
use tokio::sync::mpsc;

use super::Shared;
use super::problem::Problem;

/// Bytes that are sent at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks that wait for a slow client.
const CHUNKS_MAX: usize = 4;

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
    let (sender, mut receiver) = mpsc::channel(CHUNKS_MAX);
    let stop = gateway.stop.clone();
    let writer = Chunks { chunk: Vec::with_capacity(CHUNK_BYTES), sender: sender.clone() };
    let (began, begun) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let stopping = move |_| if stop.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let written = match store.backup(writer, stopping).await {
            Ok((mut writer, _)) => tokio::task::spawn_blocking(move || writer.flush()).await.map_err(io::Error::other),
            Err(error) => {
                // Nobody waits for it where a part has gone out.
                if let Err(error) = began.send(error) {
                    tracing::warn!(%error, "a backup was not finished");
                }
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
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_BYTES));
        // The client has gone away.
        self.sender.blocking_send(Ok(chunk.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
