//! Waits for a condition, never for a time.

use std::time::Duration;

use tokio::time::Instant;

/// How long to wait between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks until `check` is satisfied. A look that does not answer before the deadline counts as a failed one.
///
/// # Panics
/// When `deadline` has passed, with `what` was waited for and the reason of the last failed look.
pub async fn eventually(
    what: &str,
    deadline: Duration,
    check: impl AsyncFnMut() -> Result<(), String>,
) {
    if let Err(reason) = try_eventually(deadline, check).await {
        panic!("after {deadline:?} it is still not so that {what}: {reason}");
    }
}

/// Looks until `check` is satisfied.
///
/// # Errors
/// When `deadline` has passed: the reason of the last failed look.
pub async fn try_eventually(
    deadline: Duration,
    mut check: impl AsyncFnMut() -> Result<(), String>,
) -> Result<(), String> {
    let end = Instant::now() + deadline;
    let mut reason = "no look has answered".to_owned();
    loop {
        match tokio::time::timeout_at(end, check()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(why)) => reason = why,
            Err(_) => return Err(format!("{reason} (and the last look did not answer)")),
        }
        if Instant::now() + PAUSE >= end {
            return Err(reason);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tells_the_last_reason() {
        let mut looks = 0;
        let answer = try_eventually(Duration::from_millis(200), async || {
            looks += 1;
            Err(format!("look {looks}"))
        })
        .await;
        assert_eq!(answer, Err(format!("look {looks}")));
        assert!(looks > 1);
    }

    #[tokio::test]
    async fn a_look_that_hangs_is_ended() {
        let answer = try_eventually(Duration::from_millis(100), async || {
            std::future::pending::<()>().await;
            Ok(())
        })
        .await;
        assert!(answer.is_err_and(|reason| reason.contains("did not answer")));
    }
}
