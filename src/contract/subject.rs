//! Subjects: what is built outside a [`Partition`], and the one parser for all of them.

use super::key::Key;
use super::name::{Error, Table, Tenant, Token};
use super::partition::Partition;

/// A subject of the contract, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A raw observation; `number` is there once the stream has stored it.
    Observation {
        /// Whose it is.
        tenant: Tenant,
        /// Kind of observation.
        feed: Token,
        /// What was observed.
        source: Token,
        /// The number that the stream's transform has given to the source: the last of them.
        number: Option<u16>,
    },
    /// A commit of the log.
    Commit(Partition),
    /// One change of a row.
    Delta(Partition, Table, Key),
    /// One event.
    Event(Partition, Token),
    /// A snapshot, or the manifest of a chunked one.
    Snapshot(Partition),
    /// A chunk of a snapshot: its slot and index.
    Chunk(Partition, u8, u32),
    /// A quarantined message.
    Quarantine {
        /// Whose it is.
        tenant: Tenant,
        /// Who gave up: `observer`, `source`, …
        component: Token,
        /// Its name.
        name: Token,
        /// `<origin stream>-<incarnation>-<sequence>`.
        origin: String,
    },
}

/// A subject could not be taken apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A token in it breaks its rule.
    #[error("the subject \"{subject}\" has a name that is refused: {source}")]
    Name {
        /// The subject, escaped.
        subject: String,
        /// Which name and which rule.
        source: Error,
    },
    /// It is no subject of the contract.
    #[error(
        "the subject \"{subject}\" is none of this contract's: expected tenant.<t>.observation.<feed>.<source> or one of commit, delta, \
         event, snapshot, chunk, quarantine"
    )]
    Unknown {
        /// The subject, escaped.
        subject: String,
    },
}

/// Where an observation is published.
#[must_use]
pub fn observation(tenant: &Tenant, feed: &Token, source: &Token) -> String {
    format!("tenant.{}.observation.{feed}.{source}", tenant.token())
}

/// How many partitions an observer may have whose input stream numbers observations from 0 to `of`, exclusive: 1, 2, 4, 8 or 16 for 16. Each
/// divides the next, so a source's number for one count follows from its number for any larger one.
#[must_use]
pub fn partition_counts(of: u16) -> Vec<u16> {
    let (mut counts, mut count, mut prime) = (vec![1], 1, 2);
    while count < of {
        if (of / count).is_multiple_of(prime) {
            count *= prime;
            counts.push(count);
        } else {
            prime += 1;
        }
    }
    counts
}

/// The stored observations of one feed that belong to partition `number` of `partitions`, as a consumer's filter.
///
/// The stream stores them as `tenant.<t>.observation.<feed>.<n>…<source>`, with the source's number for each count of partitions above 1. So every
/// partition asks with one filter whose front is literal. A server looks through the subjects that a filter's front leaves open for each
/// message that it delivers, and is slower again by an order of magnitude with a second filter.
#[must_use]
pub fn observation_filter(tenant: &Tenant, feed: &Token, number: u16, partitions: u16) -> String {
    let mut filter = format!("tenant.{}.observation.{feed}.", tenant.token());
    for count in partition_counts(partitions).into_iter().filter(|count| *count > 1) {
        filter.push_str(&format!("{}.", number % count));
    }
    filter.push('>');
    filter
}

/// What no partition of an observer with several takes by its filter ([`observation_filter`]): publications on a subject with `*` or `>` in the
/// place of the source. The stream's transform leaves these as they are, so they have no number.
#[must_use]
pub fn unnumbered_filter(tenant: &Tenant, feed: &str) -> String {
    format!("tenant.{}.observation.{feed}.*", tenant.token())
}

/// Whether a stored observation has no number: see [`unnumbered_filter`].
#[must_use]
pub fn is_unnumbered(subject: &str) -> bool {
    let mut tokens = subject.split('.');
    tokens.nth(2) == Some("observation") && tokens.count() == 2
}

/// Where a message goes that cannot be processed. The subject identifies the message, so the stream can refuse a second copy.
#[must_use]
pub fn quarantine(
    tenant: &Tenant,
    component: &str,
    name: &Token,
    stream: &str,
    incarnation: &str,
    seq: u64,
) -> String {
    format!("tenant.{}.quarantine.{component}.{name}.{stream}-{incarnation}-{seq}", tenant.token())
}

/// The stream behind the KV bucket `state`. It has no subjects of its own: the server fills it from the log.
pub const STATE_STREAM: &str = "KV_state";

/// The key of a row in the KV bucket `state`.
#[must_use]
pub fn state_key(tenant: &Tenant, observer: &Token, table: &Table, key: &str) -> String {
    let mut subject = format!("{}.{observer}.{table}.", tenant.token());
    super::key::push_encoded(&mut subject, key);
    subject
}

/// Where a worker says what a partition is doing: a key of the KV bucket `status`.
#[must_use]
pub fn worker_status(partition: &Partition, worker: &str) -> String {
    format!(
        "$KV.status.{}.worker.{worker}.{}.{}",
        partition.tenant.token(),
        partition.observer,
        partition.number
    )
}

/// Where all workers of a tenant say what their partitions are doing, as a filter.
#[must_use]
pub fn worker_statuses(tenant: &Tenant) -> String {
    format!("$KV.status.{}.worker.>", tenant.token())
}

/// Where a collector says what sources it lists: a key of the KV bucket `status`.
#[must_use]
pub fn collector_status(tenant: &Tenant, worker: &str) -> String {
    format!("$KV.status.{}.collector.{worker}", tenant.token())
}

/// Where a worker says what it can serve of a tenant's partitions and what it serves: a key of the KV bucket `status`.
#[must_use]
pub fn worker_share(tenant: &Tenant, worker: &str) -> String {
    format!("$KV.status.{}.share.{worker}", tenant.token())
}

impl Subject {
    /// Takes a subject apart, checking every token in it.
    ///
    /// # Errors
    /// [`ParseError`], with the subject escaped so that it can be logged.
    pub fn parse(subject: &str) -> Result<Self, ParseError> {
        let unknown = || ParseError::Unknown { subject: shown(subject) };
        let name = |source| ParseError::Name { subject: shown(subject), source };
        let mut tokens = subject.split('.');
        if tokens.next() != Some("tenant") {
            return Err(unknown());
        }
        let tenant = Tenant::from_token(tokens.next().ok_or_else(unknown)?).map_err(name)?;
        let kind = tokens.next().ok_or_else(unknown)?;
        let rest: Vec<&str> = tokens.collect();
        let token = |what, text: &str| Token::new(what, text).map_err(name);
        let partition = |observer: &str, number: &str| {
            let number = number_token(number).ok_or_else(unknown)?;
            Ok::<_, ParseError>(Partition::new(tenant.clone(), token("observer", observer)?, number))
        };
        match (kind, rest.as_slice()) {
            ("observation", [feed, numbers @ .., source]) => Ok(Self::Observation {
                feed: token("feed", feed)?,
                source: token("source", source)?,
                number: numbers
                    .iter()
                    .try_fold(None, |_, number| number_token(number).map(Some))
                    .ok_or_else(unknown)?,
                tenant,
            }),
            ("commit", [observer, number]) => partition(observer, number).map(Self::Commit),
            ("snapshot", [observer, number]) => partition(observer, number).map(Self::Snapshot),
            ("delta", [observer, number, table, key]) => Ok(Self::Delta(
                partition(observer, number)?,
                Table::parse(table).map_err(name)?,
                Key::from_token(key).map_err(name)?,
            )),
            ("event", [observer, number, kind]) => {
                Ok(Self::Event(partition(observer, number)?, token("event", kind)?))
            }
            ("chunk", [observer, number, slot, index]) => Ok(Self::Chunk(
                partition(observer, number)?,
                number_token(slot).ok_or_else(unknown)?,
                number_token(index).ok_or_else(unknown)?,
            )),
            ("quarantine", [component, of, origin]) => Ok(Self::Quarantine {
                component: token("component", component)?,
                name: token("observer", of)?,
                origin: (*origin).to_owned(),
                tenant,
            }),
            _ => Err(unknown()),
        }
    }
}

/// A decimal number in its one spelling: no sign, no leading zero.
fn number_token<N: std::str::FromStr>(token: &str) -> Option<N> {
    let one_spelling = token == "0" || !token.starts_with(['0', '+', '-']);
    token.parse().ok().filter(|_| one_spelling)
}

fn shown(subject: &str) -> String {
    subject.escape_debug().take(200).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(s: &str) -> Token {
        Token::new("test", s).unwrap()
    }

    fn cluster() -> Partition {
        Partition::new(Tenant::default(), token("cluster"), 3)
    }

    #[test]
    fn golden_subjects() {
        let p = cluster();
        let nodes = Table::new("nodes").unwrap();
        assert_eq!(p.commit_subject(), "tenant._.commit.cluster.3");
        assert_eq!(p.delta_subject(&nodes, "a.b"), "tenant._.delta.cluster.3.nodes.a=2Eb");
        assert_eq!(p.event_subject(&token("leader_changed")), "tenant._.event.cluster.3.leader_changed");
        assert_eq!(p.snapshot_subject(), "tenant._.snapshot.cluster.3");
        assert_eq!(p.chunk_subject(2, 17), "tenant._.chunk.cluster.3.2.17");
        assert_eq!(observation(&p.tenant, &token("raft"), &token("n1")), "tenant._.observation.raft.n1");
        let filter = |number, partitions| observation_filter(&p.tenant, &token("raft"), number, partitions);
        assert_eq!(filter(0, 1), "tenant._.observation.raft.>");
        assert_eq!(filter(6, 8), "tenant._.observation.raft.0.2.6.>");
        assert_eq!(filter(14, 16), "tenant._.observation.raft.0.2.6.14.>");
        assert_eq!(
            quarantine(&p.tenant, "observer", &p.observer, "OBSERVATIONS", "18f0", 42),
            "tenant._.quarantine.observer.cluster.OBSERVATIONS-18f0-42"
        );
        assert_eq!(unnumbered_filter(&p.tenant, "raft"), "tenant._.observation.raft.*");
        let stored = ["raft.*", "raft.>", "raft.0.2.6.14.n1", "raft"];
        let unnumbered = stored.map(|rest| is_unnumbered(&format!("tenant._.observation.{rest}")));
        assert_eq!(unnumbered, [true, true, false, false]);
        assert_eq!(state_key(&p.tenant, &p.observer, &nodes, "n 1"), "_.cluster.nodes.n=201");
        assert_eq!(worker_status(&p, "0a1b"), "$KV.status._.worker.0a1b.cluster.3");
        assert_eq!(worker_statuses(&p.tenant), "$KV.status._.worker.>");
        assert_eq!(worker_share(&p.tenant, "*"), "$KV.status._.share.*");
        assert_eq!(collector_status(&p.tenant, "0a1b"), "$KV.status._.collector.0a1b");
        assert_eq!(p.to_string(), "cluster/3");
        assert_eq!(Partition { tenant: Tenant::new("acme").unwrap(), ..p }.to_string(), "acme:cluster/3");
    }

    #[test]
    fn hostile_subjects_are_refused_with_the_rule_they_break() {
        for subject in [
            "",
            "tenant",
            "tenant._",
            "tenant..observation.a.b",
            "tenant._.observation.*.b",
            "tenant._.observation.a.>",
            "tenant._.observation.a.b\0",
            "tenant._.observation.a.07.b",
            "tenant._.observation.a.0.x.b",
            "tenant._.observation.a.b.c.d",
            "x._.observation.a.b",
            "tenant._.commit.cluster.+1",
            "tenant._.commit.cluster.70000",
            "tenant._.delta.cluster.0.nodes.=2e",
            "tenant.A.observation.a.b",
            "tenant._.nonsense.a.b",
            "tenant._.observation.a.b\r\nX: y",
        ] {
            let refused = Subject::parse(subject).expect_err(subject).to_string();
            assert!(!refused.contains('\0') && !refused.contains('\r'), "{refused:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_built_is_parsed_back(
            tenant in "(|[a-z0-9][a-z0-9_-]{0,62})", observer in "[a-z0-9][a-z0-9_-]{0,62}", table in "_?[a-z0-9][a-z0-9_-]{0,61}",
            key in "\\PC{0,40}", number in 0u16..1000, slot in 0u8..9, index in 0u32..5000,
        ) {
            let p = Partition::new(Tenant::new(&tenant).unwrap(), token(&observer), number);
            let table = Table::parse(&table).unwrap();
            prop_assert_eq!(Subject::parse(&p.commit_subject()).unwrap(), Subject::Commit(p.clone()));
            prop_assert_eq!(Subject::parse(&p.snapshot_subject()).unwrap(), Subject::Snapshot(p.clone()));
            prop_assert_eq!(Subject::parse(&p.chunk_subject(slot, index)).unwrap(), Subject::Chunk(p.clone(), slot, index));
            prop_assert_eq!(Subject::parse(&p.event_subject(&p.observer)).unwrap(), Subject::Event(p.clone(), p.observer.clone()));
            prop_assert_eq!(
                Subject::parse(&p.delta_subject(&table, &key)).unwrap(),
                Subject::Delta(p.clone(), table, Key::new(&key).unwrap())
            );
            prop_assert_eq!(
                Subject::parse(&observation(&p.tenant, &p.observer, &p.observer)).unwrap(),
                Subject::Observation { tenant: p.tenant.clone(), feed: p.observer.clone(), source: p.observer.clone(), number: None }
            );
        }
    }
}
