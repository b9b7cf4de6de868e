//! What a server says by itself, such as that a permission is missing: it is the answer to no request, and names the subject that it is about.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

/// The last complaint about each subject, of the last of them.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    all: Mutex<HashMap<String, (Instant, String)>>,
    more: Notify,
}

impl Complaints {
    /// Takes one down; one that names no subject is nobody's.
    pub(super) fn note(&self, text: &str, now: Instant) {
        let Some(subject) = subject(text) else { return };
        let mut all = self.all();
        if all.len() >= MOST && !all.contains_key(subject) {
            let oldest = all.iter().min_by_key(|(_, (at, _))| *at).map(|(subject, _)| subject.clone());
            oldest.and_then(|oldest| all.remove(&oldest));
        }
        all.insert(subject.to_owned(), (now, text.to_owned()));
        drop(all);
        self.more.notify_waiters();
    }

    /// What was said of a subject since then.
    pub(super) fn about(&self, subject: &str, since: Instant) -> Option<String> {
        self.all().get(subject).filter(|(at, _)| *at >= since).map(|(_, text)| text.clone())
    }

    /// What was said last, since then, of a subject that `is_ours` takes.
    pub(super) fn last(&self, since: Instant, is_ours: impl Fn(&str) -> bool) -> Option<String> {
        let all = self.all();
        let ours = all.iter().filter(|(subject, (at, _))| *at >= since && is_ours(subject));
        ours.max_by_key(|(_, (at, _))| *at).map(|(_, (_, text))| text.clone())
    }

    /// Waits until something is said of a subject that `is_ours` takes.
    pub(super) async fn next(&self, since: Instant, is_ours: impl Fn(&str) -> bool) -> String {
        loop {
            let more = self.more.notified();
            tokio::pin!(more);
            // From here on nothing is missed.
            more.as_mut().enable();
            if let Some(text) = self.last(since, &is_ours) {
                return text;
            }
            more.await;
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, (Instant, String)>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a complaint is about.
fn subject(text: &str) -> Option<&str> {
    text.split('"').nth(1)
}

/// A complaint with the line that the server's configuration lacks, if it is about a permission.
pub(super) fn advice(text: &str) -> String {
    let Some(subject) = subject(text) else { return text.to_owned() };
    let text_of = text.to_lowercase();
    let (list, doing) = if text_of.contains("violation for subscription") {
        ("subscribe", "subscribe to")
    } else if text_of.contains("violation for publish") {
        ("publish", "publish to")
    } else {
        return text.to_owned();
    };
    // The answers to requests come to a subject that each connection makes up.
    let made_up = subject.strip_suffix(".*").and_then(|inbox| inbox.rsplit_once('.'));
    let allowed = match made_up {
        Some((prefix, _)) if list == "subscribe" => format!("{prefix}.>"),
        _ => subject.to_owned(),
    };
    format!(
        "this user may not {doing} {subject} ({text}): add it to the user's permissions in the server's configuration, \
         permissions: {{ {list}: {{ allow: [\"{allowed}\"] }} }}, and see that no deny list has it"
    )
}

/// Whoever asks does so within seconds; more subjects than this are not denied in that time by accident.
const MOST: usize = 1000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_subject_has_its_own_and_the_oldest_are_forgotten() {
        let complaints = Complaints::default();
        let now = Instant::now();
        let denied = |subject: &str| format!("nats: Permissions Violation for Publish to \"{subject}\"");
        complaints.note(&denied("a"), now);
        complaints.note(&denied("b.>"), now);
        complaints.note("nats: maximum connections exceeded", now);
        assert_eq!(complaints.about("a", now), Some(denied("a")));
        assert_eq!(complaints.about("b.>", now), Some(denied("b.>")));
        assert_eq!(complaints.about("b", now), None);
        let later = now + Duration::from_secs(1);
        assert_eq!(complaints.about("a", later), None, "it may be allowed by now");
        for i in 0..MOST {
            complaints.note(&denied(&format!("s{i}")), later);
        }
        assert_eq!((complaints.about("a", now), complaints.about("b.>", now)), (None, None));
        assert_eq!(complaints.about("s0", now), Some(denied("s0")));
    }

    #[tokio::test]
    async fn whoever_waits_hears_of_what_was_said_before_and_of_what_is_said_later() {
        let complaints = Complaints::default();
        let now = Instant::now();
        let denied = |subject: &str| format!("nats: Permissions Violation for Publish to \"{subject}\"");
        complaints.note(&denied("a"), now);
        assert_eq!(complaints.next(now, |subject| subject == "a").await, denied("a"));
        let later = now + Duration::from_secs(1);
        let (heard, ()) = tokio::join!(complaints.next(later, |subject| subject == "a"), async {
            complaints.note(&denied("b"), later);
            tokio::task::yield_now().await;
            complaints.note(&denied("a"), later);
        });
        assert_eq!(heard, denied("a"));
        assert_eq!(complaints.last(now, |subject| subject == "c"), None);
    }

    #[test]
    fn the_line_that_is_missing_is_named() {
        let publish = advice("nats: Permissions Violation for Publish to \"$JS.API.INFO\"");
        for words in ["may not publish to $JS.API.INFO", "publish: { allow: [\"$JS.API.INFO\"] }"] {
            assert!(publish.contains(words), "{publish}");
        }
        let inbox = advice("nats: Permissions Violation for Subscription to \"_INBOX.me.4Xk9.*\"");
        assert!(inbox.contains("subscribe: { allow: [\"_INBOX.me.>\"] }"), "{inbox}");
        let queue = advice("nats: Permissions Violation for Subscription to \"orders.>\" using queue \"q\"");
        assert!(queue.contains("subscribe: { allow: [\"orders.>\"] }"), "{queue}");
        assert_eq!(advice("nats: maximum connections exceeded"), "nats: maximum connections exceeded");
    }
}
