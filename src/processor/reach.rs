//! From where the commits behind a bucket's rows are read.
//!
//! # Guarantees
//! Whatever the bucket did not hold is in a commit all of whose parts are read, and so is a whole commit that says where the partition stands, if the
//! log has one. Nothing is read that lies much further back than that: what the bucket holds need not be read twice.

/// A commit message of the partition, as the log has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Its sequence in the log.
    pub(super) seq: u64,
    /// The number of its commit.
    pub(super) commit: u64,
    /// Which part of it, of how many.
    pub(super) part: [u32; 2],
}

/// The sequence to read from. The bucket was filled up to `filled`, the log begins at `oldest`, and `last` is the partition's last commit message;
/// `first` finds its first one from a sequence on. Other partitions append to the same stream, after this one's last commit and between the parts of
/// one: how far back that is, only the log can say.
pub(super) async fn decide_from<E>(
    filled: u64,
    oldest: u64,
    last: Part,
    first: impl AsyncFn(u64) -> Result<Option<Part>, E>,
) -> Result<u64, E> {
    let mut back = BATCH;
    loop {
        let from = (filled.min(last.seq) + 1).saturating_sub(back).max(oldest);
        let begins = |part: &Part| part.seq <= last.seq && begins_whole(*part, last);
        let mut found = first(from).await?;
        if found.as_ref().is_some_and(begins) || from <= oldest {
            return Ok(from);
        }
        // In the midst of a commit. If the bucket has all of it, the next one will do, which is not further than that.
        while let Some(part) = found.filter(|part| part.seq <= filled && !begins(part)) {
            found = first(part.seq + 1).await?;
        }
        if let Some(part) = found.filter(|part| part.seq <= filled + 1 && begins(part)) {
            return Ok(part.seq);
        }
        back *= 8;
    }
}

/// Whether commits can be read from `first` on: it is the first part of a whole commit.
fn begins_whole(first: Part, last: Part) -> bool {
    // Those before the last are whole: nobody begins the next one on top of half a commit.
    first.part[0] == 1 && (first.commit < last.commit || last.part[0] == last.part[1])
}

/// The most messages that one append of the log has.
const BATCH: u64 = 1000;

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::FutureExt as _;

    use super::*;

    fn part(commit: u64, part: [u32; 2]) -> Part {
        Part { seq: 0, commit, part }
    }

    #[test]
    fn commits_are_read_from_the_first_part_of_a_whole_one() {
        assert!(begins_whole(part(7, [1, 1]), part(7, [1, 1])), "the last one");
        assert!(begins_whole(part(7, [1, 3]), part(9, [1, 1])));
        assert!(!begins_whole(part(7, [2, 3]), part(9, [1, 1])), "its first part lies further back");
        assert!(
            !begins_whole(part(9, [1, 3]), part(9, [1, 3])),
            "the one before says where the partition stands"
        );
    }

    /// Commits of `parts` parts of `size` messages each, and as many messages of others after each part. The last commit lacks the last `lacks` parts.
    fn log(commits: u64, parts: u32, size: u64, others: u64, lacks: u32) -> Vec<Part> {
        let all = (1..=commits).flat_map(|commit| (1..=parts).map(move |part| (commit, [part, parts])));
        let mut log: Vec<Part> = all
            .zip(0..)
            .map(|((commit, part), n)| Part { seq: 1 + n * (size + others), commit, part })
            .collect();
        log.truncate(log.len() - lacks as usize);
        log
    }

    fn from(log: &[Part], filled: u64) -> u64 {
        let last = *log.last().unwrap();
        let first = async |from| {
            let at = log.partition_point(|part| part.seq < from);
            Ok::<_, Infallible>(log.get(at).copied())
        };
        let Ok(from) = decide_from(filled, 1, last, first).now_or_never().unwrap();
        from
    }

    #[test]
    fn what_the_bucket_did_not_hold_is_read_whole() {
        for (parts, size, others) in [(1, 3, 0), (1, 700, 5000), (3, 1000, 0), (5, 1000, 2000), (40, 1000, 7)]
        {
            for lacks in [0, 1, parts - 1].into_iter().filter(|lacks| *lacks < parts) {
                let log = log(30, parts, size, others, lacks);
                let end = log.last().unwrap().seq + size - 1;
                for filled in (0..=end + 10).step_by(997).chain([end - 1, end, end + 1]) {
                    let from = from(&log, filled);
                    let read = log.partition_point(|part| part.seq < from);
                    let needed = log.partition_point(|part| part.seq + size - 1 <= filled);
                    let begins = log.get(read).expect("there is always something to read");
                    assert_eq!(
                        begins.part[0], 1,
                        "{begins:?} is read first, the bucket is filled to {filled}"
                    );
                    // The first commit that the bucket lacks something of.
                    if let Some(needed) = log.get(needed) {
                        assert!(begins.commit <= needed.commit, "{begins:?} is read first, not {needed:?}");
                    }
                    assert!(lacks == 0 || begins.commit < 30, "no whole commit is read");
                }
            }
        }
    }

    #[test]
    fn a_log_of_commits_in_parts_is_not_read_from_its_beginning() {
        let log = log(1000, 5, 1000, 0, 0);
        let end = log.last().unwrap().seq + 999;
        for filled in [end, end - 1, end - 1500, end / 2] {
            let from = from(&log, filled);
            assert!(from + 10_000 > filled, "the bucket is filled to {filled}, commits are read from {from}");
        }
    }
}
