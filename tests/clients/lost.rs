//! What the server has sent into a connection that ended is asked for again.

use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde_json::json;
use watchpost::testing::{Link, eventually};

use crate::author::Author;
use crate::language;
use crate::shared;
use crate::worker::connect;

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn what_was_lost_with_a_connection_comes_though_nothing_comes_after_it() {
    let server = shared::server().await;
    connect(server.url()).await;
    for language in language::all().await {
        let mut author = Author::new(server.url()).await;
        author.commit(&[("k", json!(1))]).await;
        let link = Link::to(server.url()).await.unwrap();
        let mut tail = language.tail(&link.url(), author.tenant.as_str(), &["--until", "2"]).await;
        tail.until("the first delta", |line| line.starts_with(r#"{"seq":1,"#)).await;

        let log = author.jetstream.get_stream("DELTAS").await.unwrap();
        let own = format!("tenant.{}.", author.tenant.token());
        let consumers: Vec<_> = log.consumers().try_collect().await.unwrap();
        let names = consumers.into_iter().filter(|info| {
            let subjects = &info.config.filter_subjects;
            subjects.iter().any(|subject| subject.starts_with(&own))
        });
        // One whose first message was late has been made again; what is left of the first stays for a while.
        let name = names.max_by_key(|info| info.created).expect("the follower's consumer").name;

        // It is sent to the follower, whose connection has ended, or to this one in its place: the server takes it for delivered.
        link.close();
        let consumer = log.get_consumer::<pull::Config>(&name).await.unwrap();
        let mut instead = consumer.batch().max_messages(1).expires(LIMIT).messages().await.unwrap();
        let instead = tokio::spawn(async move { instead.next().await.is_some() });
        author.commit(&[("k", json!(2))]).await;
        eventually("the second delta sent", LIMIT, async || {
            let info = log.consumer_info(&name).await.map_err(|e| e.to_string())?;
            let sent = info.delivered.consumer_sequence;
            if sent >= 2 { Ok(()) } else { Err(format!("{sent} sent")) }
        })
        .await
        .unwrap();
        instead.abort();
        link.open();
        tail.until("the second delta", |line| line.starts_with(r#"{"seq":2,"#)).await;
        assert_eq!(tail.lines.len(), 3, "{language:?}: {:?}", tail.lines);
    }
}
