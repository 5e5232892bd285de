//! The OpenAPI document is the API: what it names is there, what is there it names.

use nexus_tests::Server;
use reqwest::Method;
use serde_json::Value;

/// A path with something in place of each parameter. Nothing of that name is there, and a handler says so itself.
fn filled(path: &str) -> String {
    path.split('/')
        .map(|part| match part {
            "{trace_id}" => "4bf92f3577b34da6a3ce929d0e0e4736",
            part if part.starts_with('{') => "none",
            part => part,
        })
        .collect::<Vec<_>>()
        .join("/")
}

#[tokio::test]
async fn what_the_document_names_is_there() {
    let server = Server::start();
    let document = server.get("/openapi.json").await;
    let mut tried = 0;
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for name in operations.as_object().expect("operations").keys() {
            // A path's own summary and parameters stand beside its methods.
            let methods = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];
            let Some(method) = methods.iter().find(|m| *m == name) else { continue };
            let method: Method = method.to_uppercase().parse().expect("a method");
            let (status, answer) = server.answer(server.request(method.clone(), &filled(path))).await;
            assert_ne!(status, 405, "{method} {path}");
            let no_route = answer["detail"].as_str().is_some_and(|d| d.starts_with("there is no page"));
            assert!(!no_route, "{method} {path}: {answer}");
            tried += 1;
        }
    }
    assert!(tried >= 25, "{tried} operations");
}

/// The other way round: on a documented path, a method that the document does not have is refused, and an unknown path is a
/// problem too.
#[tokio::test]
async fn what_the_document_does_not_name_is_not_there() {
    let server = Server::start();
    let document = server.get("/openapi.json").await;
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for name in ["get", "put", "post", "delete", "patch"] {
            if operations.get(name).is_none() {
                let method: Method = name.to_uppercase().parse().expect("a method");
                let response = server.request(method, &filled(path)).send().await.expect("an answer");
                let kind = response.headers().get("content-type").cloned();
                assert_eq!(response.status(), 405, "{name} {path}");
                assert_eq!(kind.expect("a type"), "application/problem+json", "{name} {path}");
                assert!(response.headers().contains_key("allow"), "{name} {path}");
            }
        }
    }
    for path in ["/v1", "/v1/", "/v2/events", "/v1/events/", "/fn", "/fn/", "/v1/functions/none/none", "/index.html"] {
        let response = server.request(Method::GET, path).send().await.expect("an answer");
        assert_eq!(
            (response.status().as_u16(), &response.headers()["content-type"]),
            (404, &"application/problem+json".parse().expect("a value")),
            "{path}"
        );
        let problem: Value = serde_json::from_str(&response.text().await.expect("text")).expect("JSON");
        assert_eq!(problem["status"], 404, "{path}");
    }
}
