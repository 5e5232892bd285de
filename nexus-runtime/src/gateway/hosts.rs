//! Who may drive the control API through a browser: this server's own pages, and nobody else's.
//!
//! There are two ways in for a page of another site. It may send a request across origins, which the Origin header tells, or
//! where there is none Sec-Fetch-Site.
//! Or its name may be made to point here after it was loaded (DNS rebinding): then its requests are of one origin and, for
//! GET, have no Origin header at all, but the Host header still has that name. So only names that nobody else can point
//! here are answered.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::uri::Authority;
use http::{HeaderMap, StatusCode, header};

use super::Shared;
use super::problem::Problem;

/// The names under which the API may be reached.
#[derive(Debug)]
pub struct Hosts {
    allowed: Vec<String>,
}

impl Hosts {
    /// These, beside addresses, `localhost` and names below it.
    pub fn new(allowed: Vec<String>) -> Self {
        Self { allowed: allowed.into_iter().map(|h| h.to_ascii_lowercase()).collect() }
    }

    /// Whether a Host header, with or without a port, names this server. An address does: a browser that shows it was
    /// led here by no name.
    fn admit(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        let name = authority.host().trim_end_matches('.').to_ascii_lowercase();
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        bare.parse::<IpAddr>().is_ok()
            || name == "localhost"
            || name.ends_with(".localhost")
            || self.allowed.iter().any(|allowed| allowed.trim_end_matches('.') == name)
    }
}

/// Refuses what a page of another site sends through its visitor's browser.
pub async fn own_clients(State(gateway): State<Shared>, request: Request, next: Next) -> Response {
    let refuse = |kind, detail: String| Problem::new(StatusCode::FORBIDDEN, kind, detail).into_response();
    // A target with a host of its own counts before the header (RFC 9112, section 3.2.2).
    let host = match request.uri().authority() {
        Some(authority) => Some(authority.as_str().to_owned()),
        None => request.headers().get(header::HOST).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()),
    };
    if is_subresource_of_another_site(request.headers()) {
        let detail = "requests from pages of other sites are not taken; the API is for this server's own pages";
        return refuse("cross-origin", detail.into());
    }
    // A client without a Host header is no browser.
    if let Some(host) = &host
        && !gateway.hosts.admit(host)
    {
        let detail = format!(
            "this server does not know itself as {host:?}, and would answer any page that has that name; use its address, \
             or allow the name: `hosts_allowed` in the configuration, or --allow-host"
        );
        return refuse("unknown-host", detail);
    }
    if let Some(origin) = foreign_origin(request.headers(), host.as_deref().unwrap_or_default()) {
        let detail = format!("requests from pages of {origin} are not taken; the API is for this server's own pages");
        return refuse("cross-origin", detail);
    }
    next.run(request).await
}

/// A browser says so itself when another site's page wants something, also where it sends no Origin: an image, a script. To go
/// to one of our pages by a link is everybody's right.
fn is_subresource_of_another_site(headers: &HeaderMap) -> bool {
    let value = |name: &str| headers.get(name).map(|v| v.as_bytes());
    matches!(value("sec-fetch-site"), Some(b"cross-site" | b"same-site"))
        && value("sec-fetch-mode") != Some(b"navigate")
}

/// The origin of the page that the request comes from, if it is another than this server's.
fn foreign_origin(headers: &HeaderMap, host: &str) -> Option<String> {
    let origin = headers.get(header::ORIGIN)?;
    let same = origin
        .to_str()
        .is_ok_and(|o| o.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host)));
    (!same).then(|| String::from_utf8_lossy(origin.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::Hosts;

    #[test]
    fn names_that_nobody_else_can_point_here() {
        let hosts = Hosts::new(vec!["Nexus.example".into()]);
        for own in [
            "127.0.0.1:7070",
            "127.0.0.1",
            "10.1.2.3:80",
            "[::1]:7070",
            "localhost:7070",
            "LOCALHOST",
            "localhost.",
            "a.localhost:1",
            "nexus.example",
            "NEXUS.example.:7070",
        ] {
            assert!(hosts.admit(own), "{own}");
        }
        for other in [
            "evil.example",
            "evil.example:7070",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "xlocalhost",
            "a.nexus.example",
            "nexus.example.evil",
            "",
            ":7070",
            "127.1",
            "a b",
        ] {
            assert!(!hosts.admit(other), "{other}");
        }
    }
}
