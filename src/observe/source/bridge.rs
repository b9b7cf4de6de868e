//! Making observations of a NATS subject.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::contract::Token;
use crate::contract::observation::Failure;
use crate::nats::subscribe::{Received, Subscription};

use super::collector::Shared;
use super::outlet::{Outlet, Reading, message_id};
use super::pick::pick;
use super::schedule::next_poll;
use super::status::Report;
use super::{Bridge, Source, SourceFrom};

/// How long a message waits for room while others wait behind it in the subscription.
const PATIENCE: Duration = Duration::from_millis(250);
/// Where there was none, the next are counted at once, and room is looked for again only after so long: the subscription must be read as
/// fast as messages come, or the connection drops some without a word.
const BREAK: Duration = Duration::from_secs(1);

/// Listens until told to stop.
pub(super) async fn run(
    shared: &Shared,
    source: &Source,
    bridge: &Bridge,
    report: Report,
    stop: &CancellationToken,
) {
    let mut outlet = Outlet::new(shared, source, report, stop.clone());
    for failures in 1.. {
        let began = Instant::now();
        let subscribed = stop.run_until_cancelled(shared.client.subscribe(&bridge.subject)).await;
        let Some(subscribed) = subscribed else { break };
        let message = match subscribed {
            Ok(subscription) => {
                match listen(shared, source, bridge, &mut outlet, subscription, began, stop).await {
                    Some(denied) => denied,
                    None => break,
                }
            }
            Err(error) => error.to_string(),
        };
        let failure = Failure { stage: "subscribe".to_owned(), message };
        outlet.failure(source.name.clone(), shared.clock.now(), &failure, Instant::now()).await;
        let pause = sleep(next_poll(Duration::from_secs(1), failures, 0.0, 0.0));
        if stop.run_until_cancelled(pause).await.is_none() {
            break;
        }
    }
    outlet.close().await;
}

/// Passes on what comes, until told to stop. Returns what the server says if it does not let us listen, which it does after the fact.
async fn listen(
    shared: &Shared,
    source: &Source,
    bridge: &Bridge,
    outlet: &mut Outlet,
    mut subscription: Subscription,
    began: Instant,
    stop: &CancellationToken,
) -> Option<String> {
    let mut again = Instant::now();
    loop {
        if outlet.is_behind() && Instant::now() >= again {
            outlet.catch_up(Instant::now() + PATIENCE).await;
            again = Instant::now() + BREAK;
        }
        let wake = if outlet.is_behind() { again } else { Instant::now() + BREAK };
        let next = stop.run_until_cancelled(timeout_at(wake, subscription.next()));
        let received = match next.await {
            // The subscription outlives broken connections; it ends when ours was closed for good.
            None | Some(Ok(None)) => return None,
            Some(Err(_)) => match shared.client.complaint(&bridge.subject, began) {
                Some(denied) => return Some(denied),
                None => continue,
            },
            Some(Ok(Some(received))) => received,
        };
        let patience = if outlet.is_behind() { Duration::ZERO } else { PATIENCE };
        pass_on(outlet, shared, source, bridge, received, Instant::now() + patience).await;
    }
}

async fn pass_on(
    outlet: &mut Outlet,
    shared: &Shared,
    source: &Source,
    bridge: &Bridge,
    received: Received,
    until: Instant,
) {
    let at = shared.clock.now();
    match name(bridge, &received) {
        Ok(name) => {
            let Received { headers, payload, .. } = received;
            let reading = Reading { source: name, at, id: message_id(&headers), headers, body: payload };
            outlet.reading(reading, until).await;
        }
        Err(reason) => {
            let subject: String = received.subject.escape_debug().take(200).collect();
            let message = format!("a message on {subject} tells no source: {reason}");
            outlet
                .failure(source.name.clone(), at, &Failure { stage: "name".to_owned(), message }, until)
                .await;
        }
    }
}

/// Which source a message is of.
fn name(bridge: &Bridge, received: &Received) -> Result<Token, String> {
    let name = match &bridge.source {
        SourceFrom::Token(number) => {
            let token = received.subject.split('.').nth(number.saturating_sub(1));
            token.ok_or_else(|| format!("its subject has no token {number}"))?.to_owned()
        }
        SourceFrom::Pointer(pointer) => {
            let found = pick(&received.payload, pointer)?.get();
            match serde_json::from_str(found) {
                Ok(serde_json::Value::String(text)) => text,
                Ok(serde_json::Value::Number(number)) => number.to_string(),
                _ => {
                    return Err(format!(
                        "{pointer} is {}, expected a text or a number",
                        found.chars().take(40).collect::<String>()
                    ));
                }
            }
        }
    };
    Token::new("source", &name).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(source: SourceFrom, subject: &str, body: &'static str) -> Result<String, String> {
        let bridge = Bridge { subject: "shop.*.orders".to_owned(), source };
        let received = Received { subject: subject.to_owned(), headers: Vec::new(), payload: body.into() };
        name(&bridge, &received).map(String::from)
    }

    #[test]
    fn a_message_tells_its_source_by_its_subject_or_its_body() {
        assert_eq!(told(SourceFrom::Token(2), "shop.bern.orders", "").unwrap(), "bern");
        let pointer = || SourceFrom::Pointer("/shop/id".to_owned());
        assert_eq!(told(pointer(), "x", r#"{"shop":{"id":"bern"}}"#).unwrap(), "bern");
        assert_eq!(told(pointer(), "x", r#"{"shop":{"id":17}}"#).unwrap(), "17");
    }

    #[test]
    fn a_name_that_is_none_is_refused_with_the_reason() {
        let pointer = || SourceFrom::Pointer("/id".to_owned());
        for (refused, words) in [
            (told(SourceFrom::Token(2), "shop.Bern.orders", ""), "\"Bern\""),
            (told(SourceFrom::Token(4), "shop.bern.orders", ""), "no token 4"),
            (told(pointer(), "x", "{}"), "no field \"id\""),
            (told(pointer(), "x", r#"{"id":[1]}"#), "[1], expected a text or a number"),
            (told(pointer(), "x", "no JSON"), "not JSON"),
        ] {
            let refused = refused.unwrap_err();
            assert!(refused.contains(words), "{refused}");
        }
    }
}
