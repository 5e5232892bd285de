//! A backup of a store that this process has open.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Summary;
use super::backup;
use super::error::AdminError;
use super::file::{Existing, NewFile};
use super::watch::{Step, Watch};
use crate::contract::StorageError;
use crate::embedded::Embedded;
use crate::embedded::shared::Shared;
use crate::embedded::store::Store;

/// An open store, as far as backups go. A clone stays valid after the store was closed, and answers
/// [`StorageError::Closed`].
#[derive(Clone)]
pub struct Running(Arc<Shared>);

impl Embedded {
    /// The store, for backups while it is open.
    pub fn running(&self) -> Running {
        Running(self.shared.clone())
    }
}

/// Stops the backup when nobody waits for it any more.
struct Waits(Arc<AtomicBool>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Running {
    /// Whether the store is open: not closed, and not about to be opened again after a failed write.
    pub fn is_open(&self) -> bool {
        self.0.store().is_ok()
    }

    /// Writes everything as it is at one moment, whatever is appended, committed or removed meanwhile: events up to a
    /// head without a gap above what retention took, and of each all that had come of it. Nobody waits for it but who
    /// asked.
    ///
    /// One runs at a time, on the blocking pool; another waits for it. It stops at once when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`StorageError::Closed`] if the store is closed in the meantime, [`StorageError::Failed`] if it is opened
    /// again after a failed write, and else as [`backup`](super::backup()).
    pub async fn backup<W: Write + Send + 'static>(
        &self,
        writer: W,
        watch: impl FnMut(Step) -> ControlFlow<()> + Send + 'static,
    ) -> Result<(W, Summary), AdminError> {
        let write =
            move |store: &Store, artifacts: PathBuf, watch: Watch<'_>| backup::write(store, &artifacts, writer, watch);
        self.run(write, watch).await
    }

    /// The same into a file, as [`backup`](super::backup()) makes it.
    ///
    /// # Errors
    ///
    /// As [`Running::backup`], and [`AdminError::Exists`] if the file is there and is to be kept.
    pub async fn backup_file(
        &self,
        to_file: PathBuf,
        existing: Existing,
        watch: impl FnMut(Step) -> ControlFlow<()> + Send + 'static,
    ) -> Result<Summary, AdminError> {
        let write = move |store: &Store, artifacts: PathBuf, watch: Watch<'_>| {
            let (file, summary) = backup::write(store, &artifacts, NewFile::create(&to_file, existing)?, watch)?;
            file.finish()?;
            Ok(summary)
        };
        self.run(write, watch).await
    }

    async fn run<T: Send + 'static>(
        &self,
        write: impl FnOnce(&Store, PathBuf, Watch<'_>) -> Result<T, AdminError> + Send + 'static,
        mut watch: impl FnMut(Step) -> ControlFlow<()> + Send + 'static,
    ) -> Result<T, AdminError> {
        let one_at_a_time = self.0.backing_up.clone().lock_owned().await;
        let dropped = Arc::new(AtomicBool::new(false));
        let _waits = Waits(dropped.clone());
        let shared = self.0.clone();
        let run = tokio::task::spawn_blocking(move || {
            let _one_at_a_time = one_at_a_time;
            let store = shared.store()?;
            let artifacts = shared.directory()?.artifacts();
            let mut lost = None;
            // Whoever closes the store, or opens it again, waits until nobody reads from it.
            let mut both = |step| match shared.serves(&store) {
                Ok(()) if dropped.load(Ordering::Relaxed) => ControlFlow::Break(()),
                Ok(()) => watch(step),
                Err(error) => {
                    lost = Some(error);
                    ControlFlow::Break(())
                }
            };
            let written = write(&store, artifacts, &mut both);
            match (written, lost) {
                (Err(AdminError::Stopped), Some(error)) => Err(error.into()),
                (written, _) => written,
            }
        });
        run.await.map_err(|e| StorageError::Failed(format!("a backup broke off: {e}")))?
    }
}
