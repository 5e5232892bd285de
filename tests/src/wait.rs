//! Waiting for what comes by itself: asked again and again, never slept for.

use std::time::{Duration, Instant};

/// How long something may take that is waited for. Far longer than it takes: a test does not measure.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until there is an answer; `what` is named if there never is one.
pub async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
