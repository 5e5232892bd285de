//! The stream: made once, as it has to be, and never changed.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::stream::{
    Config, DiscardPolicy, Info, Placement, RetentionPolicy, State, StorageType, Stream,
};
use async_nats::jetstream::{Context, ErrorCode};

use super::JetStreamConfig;
use crate::contract::StorageError;

/// The format of what is in the stream.
const FORMAT: &str = "1";
/// Where the stream says its format.
const FORMAT_KEY: &str = "nexus.format";
/// Where it says which log it is.
const LOG_KEY: &str = "nexus.log";
/// Within this time a group that is sent twice is kept once.
const DUPLICATES: Duration = Duration::from_secs(120);

/// Which stream it is: a name can be another one's tomorrow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) log: String,
}

/// What is wanted of the stream.
fn wanted(config: &JetStreamConfig) -> Config {
    let placement =
        |placement: &super::Placement| Placement { cluster: placement.cluster.clone(), tags: placement.tags.clone() };
    Config {
        name: config.stream.clone(),
        description: Some("The log of Nexus: groups of writes, in the order in which all runtimes take them in".into()),
        subjects: vec![subject(&config.stream)],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: config.replicas,
        discard: DiscardPolicy::New,
        max_bytes: -1,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        max_message_size: -1,
        duplicate_window: DUPLICATES,
        placement: config.placement.as_ref().map(placement),
        ..Config::default()
    }
}

/// The subject that the log's messages are published to.
pub(crate) fn subject(stream: &str) -> String {
    format!("{stream}.log")
}

/// Makes the stream if it is not there, and checks that it is as it has to be. Where a copy of it is here, it was there.
pub(crate) async fn make(
    jetstream: &Context,
    config: &JetStreamConfig,
    copied: Option<&str>,
) -> Result<(Identity, Stream), StorageError> {
    let mut wanted = wanted(config);
    let found = match jetstream.get_stream(&config.stream).await {
        Ok(found) => found,
        Err(error) if is_missing(&error) && copied.is_some() => {
            return Err(failed(
                &config.stream,
                "it is not there, and the data directory holds a copy of it. Restore it, or remove the directory if a new log \
                 is to begin",
            ));
        }
        Err(error) if is_missing(&error) => {
            let log = nexus_core::ids::InvocationId::generate().to_string();
            wanted.metadata = HashMap::from([(FORMAT_KEY.to_owned(), FORMAT.to_owned()), (LOG_KEY.to_owned(), log)]);
            if let Err(error) = jetstream.create_stream(wanted.clone()).await {
                // Another runtime may have been faster.
                tracing::debug!(%error, "the stream was not made");
            }
            jetstream.get_stream(&config.stream).await.map_err(|e| failed(&config.stream, &e.to_string()))?
        }
        Err(error) => return Err(failed(&config.stream, &error.to_string())),
    };
    let info = found.cached_info();
    let log = identity(&config.stream, info)?;
    let differences = differences(&wanted, &info.config);
    if !differences.is_empty() {
        return Err(StorageError::Other(format!(
            "the stream {} is not as it is configured: {}. Nexus changes no stream: change it with `nats stream edit`, or \
             the configuration",
            config.stream,
            differences.join("; ")
        )));
    }
    Ok((Identity { name: config.stream.clone(), log }, found))
}

/// The stream, if it is the one that the copy is of and has what the copy lacks.
pub(crate) async fn the_same(jetstream: &Context, identity: &Identity, applied: u64) -> Result<Stream, StorageError> {
    let found = match jetstream.get_stream(&identity.name).await {
        Ok(found) => found,
        Err(error) if is_missing(&error) => {
            return Err(StorageError::Other(format!(
                "the stream {} is gone from the NATS server: it was deleted, or the server started empty. What this runtime \
                 has of it is in its data directory; nothing is written until the stream is back",
                identity.name
            )));
        }
        Err(error) => return Err(failed(&identity.name, &error.to_string())),
    };
    let info = found.cached_info();
    if self::identity(&identity.name, info)? != identity.log {
        return Err(StorageError::Other(format!(
            "the stream {} is another one than before: it was deleted and made anew. Start again, and remove the data \
             directory if the new one is to be followed: all that is in it is a copy",
            identity.name
        )));
    }
    check_reach(&identity.name, &info.state, applied)?;
    Ok(found)
}

/// Whether the stream goes on where the copy ends.
pub(crate) fn check_reach(name: &str, state: &State, applied: u64) -> Result<(), StorageError> {
    if state.last_sequence < applied {
        return Err(StorageError::Other(format!(
            "the stream {name} ends at message {}, and {applied} were acknowledged to this runtime before: the NATS server \
             has lost messages. Restore it from a backup; or, to go on without what is lost, remove the data directory",
            state.last_sequence
        )));
    }
    if state.first_sequence > applied + 1 {
        return Err(StorageError::Other(format!(
            "the stream {name} begins at message {}, and this copy of it ends at {applied}: what lies between is gone. If the \
             stream was shortened meanwhile, start again: the copy begins from the snapshot then",
            state.first_sequence
        )));
    }
    Ok(())
}

fn is_missing(error: &async_nats::jetstream::context::GetStreamError) -> bool {
    use async_nats::jetstream::context::GetStreamErrorKind;
    matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

fn failed(name: &str, why: &str) -> StorageError {
    StorageError::Failed(format!("the stream {name} of NATS: {why}"))
}

fn identity(name: &str, info: &Info) -> Result<String, StorageError> {
    let of = |key: &str| info.config.metadata.get(key);
    match (of(FORMAT_KEY).map(String::as_str), of(LOG_KEY)) {
        (Some(FORMAT), Some(log)) => Ok(log.clone()),
        (Some(format), _) => Err(StorageError::Other(format!(
            "the stream {name} is of format {format}, and this release reads {FORMAT}: run a later release"
        ))),
        (None, _) => Err(StorageError::Other(format!(
            "there is a stream {name} that is not of Nexus: choose another name with --nats-stream"
        ))),
    }
}

/// What is not as wanted, each with both values.
fn differences(wanted: &Config, found: &Config) -> Vec<String> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, wanted: String, found: String| {
        if wanted != found {
            differences.push(format!("{what} is {found}, wanted is {wanted}"));
        }
    };
    compare("the number of replicas", wanted.num_replicas.to_string(), found.num_replicas.to_string());
    compare("the storage", format!("{:?}", wanted.storage), format!("{:?}", found.storage));
    compare("the retention", format!("{:?}", wanted.retention), format!("{:?}", found.retention));
    compare("the discard policy", format!("{:?}", wanted.discard), format!("{:?}", found.discard));
    compare("the list of subjects", format!("{:?}", wanted.subjects), format!("{:?}", found.subjects));
    compare("the largest age", format!("{:?}", wanted.max_age), format!("{:?}", found.max_age));
    compare("the most bytes", wanted.max_bytes.to_string(), found.max_bytes.to_string());
    compare("the most messages", wanted.max_messages.to_string(), found.max_messages.to_string());
    let per_subject = |config: &Config| config.max_messages_per_subject.to_string();
    compare("the most messages of a subject", per_subject(wanted), per_subject(found));
    compare("the largest message", wanted.max_message_size.to_string(), found.max_message_size.to_string());
    compare(
        "the window for duplicates",
        format!("{:?}", wanted.duplicate_window),
        format!("{:?}", found.duplicate_window),
    );
    compare("whether subjects are changed", "false".into(), found.subject_transform.is_some().to_string());
    compare("whether it has sources", "false".into(), found.sources.is_some().to_string());
    compare("whether it acknowledges", (!wanted.no_ack).to_string(), (!found.no_ack).to_string());
    differences
}
