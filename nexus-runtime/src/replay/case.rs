//! A case: an event with what came of it, in one file, to be replayed elsewhere. A bug report that runs.

use std::sync::Arc;

use bytes::Bytes;
use nexus_core::function::{FunctionConfig, FunctionKind};
use nexus_core::ids::{Digest, FunctionName, Seq, Version};
use nexus_core::journal;
use nexus_core::outcome::{Disposition, Outcome};
use nexus_core::record::NewRecord;
use nexus_log::Commit;
use serde::{Deserialize, Serialize};

use super::deliveries;
use super::request::{ReplayError, ReplayRequest};
use crate::line::Line;

/// What a case says that it is.
const FORMAT: &str = "nexus.case.v1";

/// An event, and one delivery of it for each function.
#[derive(Debug, Serialize, Deserialize)]
pub struct Case {
    format: String,
    /// The event as the log has it.
    pub record: NewRecord,
    /// What came of it.
    pub deliveries: Vec<CaseDelivery>,
}

/// The last attempt at one function.
#[derive(Debug, Serialize, Deserialize)]
pub struct CaseDelivery {
    /// The function.
    pub function: FunctionName,
    /// The digest of the component that ran.
    pub digest: Digest,
    /// Its kind.
    pub kind: FunctionKind,
    /// The configuration that it had.
    config: FunctionConfig,
    /// What came of it, its journal included.
    outcome: Outcome,
    /// The events that it emitted; absent where they are not all there any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    emitted: Option<Vec<NewRecord>>,
}

/// Why a case cannot be replayed here.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// It is not one.
    #[error("this is no case of Nexus: {0}; `nexus events export ID` writes one")]
    Not(String),
    /// It has other functions.
    #[error("the case has no delivery to a function {wanted}; it has: {}", has.join(", "))]
    Function {
        /// Which one was asked for.
        wanted: String,
        /// Which there are.
        has: Vec<String>,
    },
    /// It could not be set up.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

impl Case {
    /// Reads one.
    pub fn read(json: &[u8]) -> Result<Self, CaseError> {
        #[derive(Deserialize)]
        struct Head {
            format: String,
        }
        let head: Head = serde_json::from_slice(json).map_err(|e| CaseError::Not(e.to_string()))?;
        if head.format != FORMAT {
            return Err(CaseError::Not(format!("its format is {:?}, this release reads {FORMAT:?}", head.format)));
        }
        serde_json::from_slice(json).map_err(|e| CaseError::Not(e.to_string()))
    }

    /// The functions that ran, and their versions.
    pub fn ran(&self) -> Vec<(FunctionName, Version)> {
        self.deliveries.iter().map(|delivery| (delivery.function.clone(), delivery.outcome.version)).collect()
    }

    /// Makes one of an event, with every delivery that can be replayed, or of one function.
    pub async fn of(
        line: &Line,
        request: &ReplayRequest,
        record: nexus_core::record::Record,
    ) -> Result<Self, ReplayError> {
        let record = Arc::new(record);
        let mut all = Vec::new();
        let mut why = "it went to no function".to_owned();
        for item in deliveries::of(line, &record, request, None).await? {
            match item.case(line).await {
                Ok(delivery) => all.push(delivery),
                Err(reason) => why = reason,
            }
        }
        if all.is_empty() {
            return Err(ReplayError::NotFound(format!("there is nothing of this event to replay elsewhere: {why}")));
        }
        Ok(Self { format: FORMAT.to_owned(), record: record.entry.clone(), deliveries: all })
    }

    /// Puts one delivery into an empty log and catalog, as if it had happened there, with this component as the function's only
    /// version. The result says whether it is the one that ran.
    pub async fn set_up(mut self, line: &Line, function: Option<&str>, component: Bytes) -> Result<bool, CaseError> {
        let has = self.deliveries.iter().map(|delivery| delivery.function.to_string()).collect();
        let wanted = |delivery: &CaseDelivery| function.is_none_or(|name| delivery.function.as_str() == name);
        let Some(at) = self.deliveries.iter().position(wanted) else {
            return Err(CaseError::Function { wanted: function.unwrap_or_default().to_owned(), has });
        };
        let CaseDelivery { function, digest, config, mut outcome, emitted, .. } = self.deliveries.swap_remove(at);
        let same = Digest::of(&component) == digest;
        let failed = |error: &dyn std::fmt::Display| CaseError::Other(anyhow::anyhow!("{error}"));
        line.catalog.deploy(&function, component).await.map_err(|e| failed(&e))?;
        let kept = outcome.journal.as_ref().ok_or_else(|| CaseError::Not("it has no journal".into()))?;
        let journal = journal::read(kept).map_err(|damaged| CaseError::Not(damaged.to_string()))?;
        line.catalog.keep_config(journal.header.config, &config).await.map_err(|e| failed(&e))?;
        // What it is replayed with was kept just now. Its folders are of another host, and a replay has none.
        let here = FunctionConfig { mounts: Vec::new(), ..config };
        line.catalog.configure(&function, here).await.map_err(|e| failed(&e))?;
        self.record.claimed_by = None;
        let log = &line.storage.log;
        let receipts = log.append(vec![self.record]).await.map_err(|e| failed(&e))?;
        let seq = receipts.first().map_or(Seq(1), |receipt| receipt.seq);
        let mut emitted = emitted.unwrap_or_default();
        for record in &mut emitted {
            if let Some(cause) = &mut record.cause {
                cause.seq = seq;
            }
        }
        outcome.seq = seq;
        outcome.version = if same { Version(1) } else { Version(0) };
        outcome.disposition = Disposition::Done;
        log.commit(Commit { outcome: outcome.into(), emitted }).await.map_err(|e| failed(&e))?;
        Ok(same)
    }
}

impl deliveries::Item {
    /// This delivery, to be replayed elsewhere.
    async fn case(&self, line: &Line) -> Result<CaseDelivery, String> {
        let before = self.before().ok_or("the function has not run on this event")?;
        let version = self.entry().function.version(before.version).ok_or("the version that ran is gone")?;
        if let Some(why) = before.journal_partial {
            return Err(format!("the journal of its invocation is partial: {why}"));
        }
        let kept = before.journal.as_ref().ok_or("there is no journal of its invocation")?;
        let journal = journal::read(kept).map_err(|damaged| damaged.to_string())?;
        let config = line.catalog.config(self.entry(), journal.header.config).await.map_err(|e| e.to_string())?;
        let config = config.ok_or("the configuration that its invocation had is not known any more")?;
        Ok(CaseDelivery {
            function: before.function.clone(),
            digest: version.digest,
            kind: version.kind,
            config: (*config).clone(),
            outcome: before.clone(),
            emitted: self.emitted(line, before).await,
        })
    }
}
