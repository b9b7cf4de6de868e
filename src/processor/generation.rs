//! Which life of its fold a log is in, and whether this worker's fold may go on with it.

use crate::contract::commit::Generation;
use crate::nats::log::Head;
use crate::store::Progress;

use super::fold::Spec;
use super::open::HeadCommit;

/// Whether a fold may go on with a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// It may.
    Ours,
    /// The log was begun to be turned over to this fold, and that is not finished.
    Begun(String),
    /// The log is another fold's.
    Anothers(String),
}

/// Whether the head of a log says that it is this fold's.
pub(super) fn is_of(spec: &Spec, head: Option<&Head>) -> bool {
    head.and_then(fold_of).is_some_and(|fold| fold == spec.mark())
}

/// Whether the head of a log says that it is another fold's than the one that this marks.
pub(super) fn is_anothers(mark: &str, head: &Head) -> bool {
    fold_of(head).is_some_and(|fold| fold != mark)
}

fn fold_of(head: &Head) -> Option<String> {
    Some(HeadCommit::read(head).ok()?.generation?.fold)
}

/// Compares a fold with the head of a log, or with what the store knows of it where the head has aged out.
pub(super) fn decide_standing(spec: &Spec, head: Option<&Head>, progress: &Progress) -> Standing {
    let head = head.and_then(|head| HeadCommit::read(head).ok());
    let head = head.as_ref();
    let Some(found) = head.and_then(|head| head.generation.as_ref()).or(progress.generation.as_ref()) else {
        return Standing::Ours; // written before logs said so
    };
    let Generation { number, since, fold } = found;
    let observer = &spec.observer;
    if *fold != spec.mark() {
        return Standing::Anothers(format!(
            "the log is at generation {number} of fold {fold} (since commit {since}); this worker has fold {}: start it with the manifest that \
             the log was folded by, or have it folded anew by this one (`watchpost observers rebuild {observer}`)",
            spec.mark()
        ));
    }
    match head {
        Some(head) if head.is_turning() => Standing::Begun(format!(
            "generation {number} was begun with commit {since} and has {} of its {} parts: run `watchpost observers rebuild {observer}` again \
             to finish it",
            head.part[0], head.part[1]
        )),
        Some(_) | None => Standing::Ours,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::contract::Token;

    fn spec(fingerprint: &str) -> Spec {
        Spec {
            observer: Token::new("observer", "o").unwrap(),
            feed: Token::new("feed", "f").unwrap(),
            partitions: 1,
            tables: Vec::new(),
            fingerprint: fingerprint.to_owned(),
        }
    }

    fn head(part: [u32; 2], generation: &serde_json::Value) -> Head {
        let input = json!({"stream": "I", "incarnation": "a", "from": 9, "to": 9, "count": 0});
        let payload = json!({"commit": 7, "input": input, "part": part, "generation": generation});
        Head { seq: 50, payload: payload.to_string().into() }
    }

    #[test]
    fn a_fold_goes_on_with_its_own_log_and_waits_for_one_that_is_being_turned_over() {
        let decide = |fold, part, generation| {
            decide_standing(&spec(fold), Some(&head(part, &generation)), &Progress::default())
        };
        let second = json!({"number": 2, "since": 7, "fold": "new"});
        assert_eq!(decide("new", [1, 1], second.clone()), Standing::Ours);
        assert_eq!(decide("any", [1, 1], json!(null)), Standing::Ours, "a log that does not say");
        let Standing::Begun(why) = decide("new", [1, 3], second.clone()) else { panic!("not begun") };
        assert!(why.contains("1 of its 3 parts") && why.contains("observers rebuild o"), "{why}");
        let Standing::Anothers(why) = decide("old", [1, 3], second) else { panic!("not another's") };
        assert!(why.contains("generation 2 of fold new") && why.contains("has fold old"), "{why}");
        let later = json!({"number": 2, "since": 5, "fold": "new"});
        assert_eq!(decide("new", [1, 3], later), Standing::Ours, "a commit of its own in parts");
    }
}
