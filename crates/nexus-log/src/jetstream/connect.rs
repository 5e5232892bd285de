//! The connection to the servers.

use std::time::Duration;

use async_nats::ConnectOptions;
use async_nats::jetstream::{self, Context};

use super::{JetStreamConfig, Login};
use crate::contract::StorageError;

/// How long one request to the servers may take.
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);
/// How often the server is asked whether it is there: one that stands still answers nothing, and is left after two of these.
const PING_PERIOD: Duration = Duration::from_secs(1);
/// How long the first connection may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// An address as it may be shown: without a user and a password.
fn shown(server: &str) -> String {
    match (server.split_once("://"), server.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        (None, Some((_, host))) => host.to_owned(),
        (_, None) => server.to_owned(),
    }
}

/// Connects. Later the client connects again by itself, as often as it must.
pub(crate) async fn connect(config: &JetStreamConfig) -> Result<Context, StorageError> {
    let mut options = ConnectOptions::new()
        .name("nexus")
        .connection_timeout(CONNECT_PATIENCE)
        .request_timeout(Some(REQUEST_PATIENCE))
        .ping_interval(PING_PERIOD);
    match &config.login {
        Login::None => {}
        Login::Credentials(path) => {
            options = options
                .credentials_file(path)
                .await
                .map_err(|e| StorageError::Other(format!("the NATS credentials in {}: {e}", path.display())))?;
        }
        Login::Token(path) => {
            let token = std::fs::read_to_string(path)
                .map_err(|e| StorageError::Other(format!("the NATS token in {}: {e}", path.display())))?;
            options = options.token(token.trim().to_owned());
        }
    }
    if let Some(ca) = &config.ca {
        options = options.add_root_certificates(ca.clone()).require_tls(true);
    }
    if let Some((certificate, key)) = &config.certificate {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    let servers = config.servers.iter().map(|server| shown(server)).collect::<Vec<_>>().join(", ");
    let addresses = config.servers.iter().map(|server| server.parse::<async_nats::ServerAddr>());
    let addresses: Vec<_> = addresses
        .collect::<Result<_, _>>()
        .map_err(|e| StorageError::Invalid(format!("{servers} is no address of a NATS server: {e}")))?;
    let client = options
        .connect(addresses)
        .await
        .map_err(|e| StorageError::Failed(format!("no connection to the NATS server at {servers}: {e}")))?;
    let context = jetstream::ContextBuilder::new().timeout(REQUEST_PATIENCE).build(client);
    context.query_account().await.map_err(|e| {
        StorageError::Failed(format!("the NATS server at {servers} does not serve JetStream to this account: {e}"))
    })?;
    Ok(context)
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn no_password_is_shown() {
        assert_eq!(shown("nats://a:4222"), "nats://a:4222");
        assert_eq!(shown("tls://user:p@ss@a:4222"), "tls://a:4222");
        assert_eq!(shown("token@a"), "a");
    }
}
