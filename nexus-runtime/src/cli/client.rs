//! Talking to the server, and turning what it says into exit codes.

use http::StatusCode;
use nexus_core::ids::InvocationId;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;

use super::style::say;
use super::{Failure, Global, Output};

/// A server's API.
pub struct Client {
    http: reqwest::Client,
    url: String,
    /// How data is printed.
    pub output: Output,
}

impl Client {
    /// A client for the server that the flags name.
    pub fn new(global: &Global) -> Result<Self, Failure> {
        let url = url::Url::parse(&global.url)
            .ok()
            .filter(|u| matches!(u.scheme(), "http" | "https"))
            .ok_or_else(|| Failure::usage(format!("--url {:?} is not http://host:port", global.url)))?;
        let http = reqwest::Client::builder()
            .user_agent(concat!("nexus/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| Failure::failed(format!("no HTTP client: {e}")))?;
        Ok(Self { http, url: url.as_str().trim_end_matches('/').to_owned(), output: global.output })
    }

    /// The server's address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A request to a path; its parts must be encoded.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    /// Sends; an answer that is an error becomes a failure with its exit code.
    pub async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = self.send_any(request).await?;
        self.checked(response).await
    }

    /// An answer that is an error becomes a failure with its exit code.
    pub async fn checked(&self, response: Response) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        let detail =
            serde_json::from_str::<Value>(&text).ok().and_then(|p| Some(p.get("detail")?.as_str()?.to_owned()));
        let code = match status {
            StatusCode::NOT_FOUND => 3,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => 4,
            _ => 1,
        };
        Err(Failure::new(code, detail.unwrap_or_else(|| format!("the server answered with {status}"))))
    }

    /// Sends; any answer is an answer.
    pub async fn send_any(&self, request: RequestBuilder) -> Result<Response, Failure> {
        request.send().await.map_err(|e| {
            let unreachable = e.is_connect() || e.is_timeout();
            let cause = std::iter::successors(std::error::Error::source(&e), |e| e.source()).last();
            let cause = cause.map_or_else(|| e.to_string(), ToString::to_string);
            let hint = "start one with `nexus dev`, or name it with --url";
            if unreachable {
                Failure::new(5, format!("no server at {}: {cause}; {hint}", self.url))
            } else {
                Failure::failed(format!("{}: {cause}", self.url))
            }
        })
    }

    /// Gets JSON.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        json(self.send(self.request(Method::GET, path)).await?).await
    }

    /// Gets JSON as the text that it is: payloads keep the order of their members, and every digit of their numbers.
    pub async fn text(&self, path: &str) -> Result<String, Failure> {
        let response = self.send(self.request(Method::GET, path)).await?;
        response.text().await.map_err(|e| Failure::failed(format!("the answer broke off: {e}")))
    }

    /// Gets JSON, or `None` where it is not there.
    pub async fn find(&self, path: &str) -> Result<Option<Value>, Failure> {
        match self.get(path).await {
            Ok(value) => Ok(Some(value)),
            Err(failure) if failure.code == 3 => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Whether an id of an event or an invocation is that of an invocation.
    pub async fn is_invocation(&self, id: &str) -> Result<bool, Failure> {
        // Of one that cannot be, the server would say that it is none at all.
        let may_be = id.len() == 36 && id.parse::<InvocationId>().is_ok();
        Ok(may_be && self.find(&format!("/v1/invocations/{}", encoded(id))).await?.is_some())
    }

    /// A case: an invocation, or an event with the last attempts at its functions.
    pub async fn export(&self, id: &str, source: Option<&str>) -> Result<String, Failure> {
        if source.is_none() && self.is_invocation(id).await? {
            return self.text(&format!("/v1/invocations/{}/export", encoded(id))).await;
        }
        let source = source.map_or_else(String::new, |source| format!("?source={}", encoded(source)));
        self.text(&format!("/v1/events/{}/export{source}", encoded(id))).await
    }
}

/// An answer's JSON.
pub async fn json(response: Response) -> Result<Value, Failure> {
    response.json().await.map_err(|e| Failure::failed(format!("the server's answer is no JSON: {e}")))
}

/// Encodes a part of a path.
pub fn encoded(part: &str) -> String {
    url::form_urlencoded::byte_serialize(part.as_bytes()).collect::<String>().replace('+', "%20")
}

/// JSON with a line for each member. Only the white space between is new.
pub fn indented(json: &str) -> String {
    let (mut out, mut depth, mut quoted, mut escaped) = (String::new(), 0_usize, false, false);
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    };
    for c in json.chars() {
        if quoted {
            out.push(c);
            quoted = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        let after_open = out.ends_with(['{', '[']);
        match c {
            c if c.is_ascii_whitespace() => continue,
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                if !after_open {
                    line(&mut out, depth);
                }
            }
            _ if after_open => line(&mut out, depth),
            _ => {}
        }
        out.push(c);
        match c {
            '"' => quoted = true,
            '{' | '[' => depth += 1,
            ',' => line(&mut out, depth),
            ':' => out.push(' '),
            _ => {}
        }
    }
    out
}

/// Prints JSON, readable.
pub fn print_json(value: &Value) {
    say!("{value:#}");
}

#[cfg(test)]
mod tests {
    use super::indented;

    #[test]
    fn indenting_changes_white_space_only() {
        let check = |json: &str, expected: &str| assert_eq!(indented(json), expected, "{json}");
        check("{}", "{}");
        check("[ ]", "[]");
        check(r#"{"b":1e400,"a":[1, "x,{\"}"]}"#, "{\n  \"b\": 1e400,\n  \"a\": [\n    1,\n    \"x,{\\\"}\"\n  ]\n}");
        check(r#""\\""#, r#""\\""#);
    }
}
