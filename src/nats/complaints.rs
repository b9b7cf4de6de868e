//! What a server says by itself, such as that a permission is missing: it is the answer to no request, and names the subject that it is about.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// The last complaint about each subject, of the last of them.
#[derive(Debug, Default)]
pub(super) struct Complaints(Mutex<HashMap<String, (Instant, String)>>);

impl Complaints {
    /// Takes one down; one that names no subject is nobody's.
    pub(super) fn note(&self, text: &str, now: Instant) {
        let Some(subject) = text.split('"').nth(1) else { return };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST && !all.contains_key(subject) {
            let oldest = all.iter().min_by_key(|(_, (at, _))| *at).map(|(subject, _)| subject.clone());
            oldest.and_then(|oldest| all.remove(&oldest));
        }
        all.insert(subject.to_owned(), (now, text.to_owned()));
    }

    /// What was said of a subject since then.
    pub(super) fn about(&self, subject: &str, since: Instant) -> Option<String> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(subject).filter(|(at, _)| *at >= since).map(|(_, text)| text.clone())
    }
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
}
