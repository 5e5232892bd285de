//! The shortest way through every part.

use nexus_tests::Server;
use serde_json::json;

#[tokio::test]
async fn an_event_is_delivered_and_told_of() {
    let server = Server::start();
    server.deploy("noop", "noop", json!({"triggers": [{"filters": [{"exact": {"type": "t"}}]}]})).await;
    let receipt = server.send(json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t"})).await;
    let event = server.settled("1", "done").await;
    assert_eq!(event["invocations"][0]["status"], "ok");
    assert_eq!(event["trace_id"], receipt["trace_id"]);
    assert_eq!(server.stop(), Some(0));
}
