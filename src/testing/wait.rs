use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::Error;

/// Asks again and again until the answer is `Ok`, and for `limit` at most. `what` completes "… did not happen within 5 s".
///
/// ```
/// # async fn example(read: impl AsyncFn() -> u64) -> Result<(), watchpost::testing::Error> {
/// use std::time::Duration;
///
/// let count = watchpost::testing::eventually("a count of three", Duration::from_secs(5), async || {
///     let count = read().await;
///     if count == 3 { Ok(count) } else { Err(format!("a count of {count}")) }
/// })
/// .await?;
/// # assert_eq!(count, 3);
/// # Ok(())
/// # }
/// ```
///
/// A question that is still without an answer a minute after the limit is given up.
///
/// # Errors
/// [`Error::Late`] with the last answer, so that a failed test tells what was there instead.
pub async fn eventually<T, E: Display>(
    what: &str,
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, Error> {
    let late = |last: String| Err(Error::Late { what: what.to_owned(), waited: limit, last });
    let deadline = Instant::now() + limit;
    let mut before: Option<E> = None;
    loop {
        match timeout_at(deadline + SILENCE, ask()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(last)) if Instant::now() >= deadline => return late(last.to_string()),
            Ok(Err(last)) => before = Some(last),
            Err(_) => {
                let before = before.map_or_else(|| "nothing".to_owned(), |last| last.to_string());
                return late(format!("no answer {SILENCE:?} after that; before: {before}"));
            }
        }
        sleep(BETWEEN).await;
    }
}

const BETWEEN: Duration = Duration::from_millis(10);

/// How long after its limit a wait still hopes for the answer to its last question: more than any request takes.
const SILENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_good_answer_ends_the_wait() {
        let mut asked = 0;
        let answer = eventually("three", Duration::from_secs(5), async || {
            asked += 1;
            if asked == 3 { Ok(asked) } else { Err("fewer") }
        });
        assert_eq!(answer.await.unwrap(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_fails_tells_what_it_last_saw() {
        let started = Instant::now();
        let late = eventually::<(), _>("three", Duration::from_secs(5), async || Err("two"));
        let error = late.await.unwrap_err().to_string();
        assert_eq!(error, "three did not happen within 5s; last seen: two");
        assert!(started.elapsed() < Duration::from_secs(6));
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_is_never_answered_ends_the_wait_all_the_same() {
        let mut asked = 0;
        let late = eventually::<(), _>("three", Duration::from_secs(5), async || {
            asked += 1;
            if asked == 1 { Err("two") } else { std::future::pending().await }
        });
        let error = late.await.unwrap_err().to_string();
        let expected = "three did not happen within 5s; last seen: no answer 60s after that; before: two";
        assert_eq!(error, expected);
    }
}
