//! The ids of recent observations: a stream knows an id again whoever published it, so one source's must not be another's.

use futures_util::{StreamExt as _, stream};
use watchpost::contract::{Subject, header, id};
use watchpost::nats::{Client, Error, scan};

use super::Finding;

/// A stored observation's subject, and its id if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identified {
    subject: String,
    id: Option<String>,
}

/// Reads the last observations. One whose headers cannot be read is passed over.
pub(super) async fn look(client: &Client) -> Result<Vec<Identified>, Error> {
    let streams = scan::streams(client, "tenant.*.observation.*.*").await?;
    let Some(name) = streams.into_iter().next() else { return Ok(Vec::new()) };
    let Some(facts) = scan::facts(client, &name).await? else { return Ok(Vec::new()) };
    let recent = facts.first.max((facts.last + 1).saturating_sub(RECENT))..=facts.last;
    let found: Vec<_> = stream::iter(recent)
        .map(|seq| {
            let (client, name) = (client.clone(), name.clone());
            // In a task of its own: a program may have stored headers that the client takes for impossible.
            tokio::spawn(async move { scan::get(&client, &name, seq).await })
        })
        .buffered(AT_A_TIME)
        .collect()
        .await;
    let stored = found.into_iter().filter_map(|found| found.ok()?.ok()?);
    Ok(stored
        .map(|message| {
            let id = header::get(&message.headers, header::MSG_ID).map(ToOwned::to_owned);
            Identified { subject: message.subject, id }
        })
        .collect())
}

/// Judges them; nothing where there are none.
pub(super) fn judge(recent: &[Identified]) -> Option<Finding> {
    let identified: Vec<(&str, &str)> =
        recent.iter().filter_map(|one| Some((&*one.subject, one.id.as_deref()?))).collect();
    let bare: Vec<(&str, &str, String)> = identified
        .iter()
        .filter_map(|(subject, id)| {
            let Ok(Subject::Observation { tenant, feed, source, .. }) = Subject::parse(subject) else {
                return None; // it goes to quarantine
            };
            let scope = id::scope(&tenant, &feed, &source);
            let is_bare = id.strip_prefix(&scope).is_none_or(str::is_empty);
            is_bare.then(|| (*subject, *id, format!("{scope}{id}")))
        })
        .collect();
    if recent.is_empty() {
        return None;
    }
    let Some((subject, id, scoped)) = bare.first() else {
        let found = format!(
            "of the last {} observations {} have an id, and each begins with its tenant, feed and source",
            recent.len(),
            identified.len()
        );
        return Some(Finding::ok(WHAT, found));
    };
    let shown = |text: &str| text.escape_debug().take(100).collect::<String>();
    let found = format!(
        "{} of the last {} observations have a Nats-Msg-Id that does not begin with their tenant, feed and source: \"{}\" on {subject}",
        bare.len(),
        recent.len(),
        shown(id)
    );
    let advice = format!(
        "a stream drops a message whose id it has seen within its duplicate window, whoever published that one, and answers as if it had stored it: \
         have the publisher put <tenant>/<feed>/<source>/ before its ids, here \"{}\"",
        shown(scoped)
    );
    Some(Finding::warn(WHAT, found, advice))
}

const WHAT: &str = "message ids";
/// As many observations are looked at.
const RECENT: u64 = 100;
const AT_A_TIME: usize = 16;

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn of(all: &[(&str, Option<&str>)]) -> Option<Finding> {
        let one = |(rest, id): &(&str, Option<&str>)| Identified {
            subject: format!("tenant.acme.observation.{rest}"),
            id: id.map(ToOwned::to_owned),
        };
        judge(&all.iter().map(one).collect::<Vec<_>>())
    }

    #[test]
    fn ids_that_another_source_may_have_too_are_named() {
        let good = ("f.1.3.3.11.n1", Some("acme/f/n1/7"));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[good, ("f.0.0.0.0.n2", None)]).unwrap().level, Level::Ok);
        for id in ["7", "acme/f/n2/7", "acme/f/n1/", "_/f/n1/7"] {
            let found = of(&[good, ("f.1.3.3.11.n1", Some(id))]).unwrap();
            assert_eq!(found.level, Level::Warn, "{id}");
            assert!(found.found.starts_with("1 of the last 2 observations"), "{found:?}");
            assert!(found.advice.contains(&format!("\"acme/f/n1/{id}\"")), "{found:?}");
        }
        assert_eq!(of(&[("f.*", Some("7"))]).unwrap().level, Level::Ok, "it goes to quarantine");
    }
}
