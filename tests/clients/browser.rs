//! The page in a real browser: it follows an observer over WebSocket, shows what changes, and says what is gone.
//!
//! Set `WATCHPOST_TEST_SCREENSHOT` to a file to see what it looked like.

use std::process::Stdio;
use std::time::Duration;

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use watchpost::testing::{Backend, Options, Server, eventually, not_run, reserve_port};

use crate::author::Author;
use crate::language::clients;
use crate::worker::connect;

const LIMIT: Duration = Duration::from_secs(180);

/// A browser, driven over HTTP as the WebDriver standard says.
struct Browser {
    http: reqwest::Client,
    session: String,
    _driver: Child,
}

impl Browser {
    /// Nothing if there is none on this machine.
    async fn start() -> Option<Self> {
        let port = reserve_port().unwrap();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        // Everything here is plain HTTP on this machine; a provider for TLS is named all the same before a client can be made.
        drop(rustls::crypto::ring::default_provider().install_default());
        let http = reqwest::Client::builder().timeout(LIMIT).build().unwrap();
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--window-size=1200,800",
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": arguments}}}});
        let url = format!("http://127.0.0.1:{port}/session");
        let session = eventually("a browser", LIMIT, async || {
            let answer = http.post(&url).body(wanted.to_string()).send().await.map_err(|e| e.to_string())?;
            let text = answer.text().await.map_err(|e| e.to_string())?;
            let answer: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
            answer["value"]["sessionId"].as_str().map(|id| format!("{url}/{id}")).ok_or(text)
        })
        .await;
        match session {
            Ok(session) => Some(Self { http, session, _driver: driver }),
            Err(why) if why.to_string().contains("cannot find") => None,
            Err(why) => panic!("{why}"),
        }
    }

    async fn post(&self, what: &str, body: Value) -> Value {
        let answer =
            self.http.post(format!("{}/{what}", self.session)).body(body.to_string()).send().await.unwrap();
        let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert!(answer["value"].get("error").is_none(), "{answer}");
        answer["value"].clone()
    }

    async fn open(&self, url: &str) {
        self.post("url", json!({"url": url})).await;
    }

    /// What is written in an element; nothing if there is no such element.
    async fn text(&self, selector: &str) -> Option<String> {
        let script = "return document.querySelector(arguments[0])?.innerText ?? null";
        let found = self.post("execute/sync", json!({"script": script, "args": [selector]})).await;
        found.as_str().map(ToOwned::to_owned)
    }

    async fn until(&self, selector: &str, fits: impl Fn(&str) -> bool) {
        eventually(&format!("{selector} as expected"), LIMIT, async || {
            let text = self.text(selector).await;
            if text.as_deref().is_some_and(&fits) { Ok(()) } else { Err(format!("{text:?}")) }
        })
        .await
        .unwrap();
    }

    async fn screenshot(&self) -> Vec<u8> {
        let answer = self.http.get(format!("{}/screenshot", self.session)).send().await.unwrap();
        let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        decode(answer["value"].as_str().unwrap())
    }

    async fn close(self) {
        self.http.delete(&self.session).send().await.unwrap();
    }
}

/// Base64, of which the tests need no more than this.
fn decode(text: &str) -> Vec<u8> {
    const DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits: Vec<u32> =
        text.chars().filter_map(|c| DIGITS.find(c)).map(|digit| u32::try_from(digit).unwrap()).collect();
    let groups = digits.chunks(4).flat_map(|group| {
        let bits = group.iter().fold(0, |bits, digit| bits << 6 | digit) << (6 * (4 - group.len()));
        bits.to_be_bytes()[1..group.len()].to_vec()
    });
    groups.collect()
}

/// Serves `clients/` as any static server would; returns its address.
async fn serve() -> String {
    let app = axum::Router::new().route(
        "/{*path}",
        axum::routing::get(async |Path(path): Path<String>| {
            let path = if path.ends_with('/') { format!("{path}index.html") } else { path };
            let kind = if path.ends_with(".html") { "text/html" } else { "text/javascript" };
            match tokio::fs::read(clients().join(path)).await {
                Ok(bytes) => ([(header::CONTENT_TYPE, kind)], bytes).into_response(),
                Err(_) => StatusCode::NOT_FOUND.into_response(),
            }
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_rows_events_and_gaps_as_they_come() {
    let Some(browser) = Browser::start().await else {
        not_run(
            "the page in a browser: no chromedriver with Chromium (Debian: apt-get install chromium chromium-driver)",
        )
        .unwrap();
        return;
    };
    let port = reserve_port().unwrap();
    let extra = format!("websocket {{ listen: \"127.0.0.1:{port}\", no_tls: true }}");
    let mut server =
        Server::start_on(Backend::Local, &Options { extra, ..Options::default() }).await.unwrap();
    connect(server.url()).await;
    let mut author = Author::new(server.url()).await;
    author
        .commit(&[
            ("n1", json!({"state": "LEADER", "term": 3})),
            ("n2", json!({"state": "FOLLOWER", "term": 3})),
        ])
        .await;
    author
        .snapshot(
            &json!({"n1": {"state": "LEADER", "term": 3}, "n2": {"state": "FOLLOWER", "term": 3}}),
            Some((3, 0)),
        )
        .await;
    let pages = serve().await;
    let query = format!("nats=ws://127.0.0.1:{port}&observer=o&tenant={}", author.tenant);
    browser.open(&format!("{pages}/browser/?{query}")).await;
    browser.until("#state", |text| text == "live").await;
    browser
        .until("#table-t", |text| text.contains("n1") && text.contains(r#"{"state":"LEADER","term":3}"#))
        .await;

    author
        .commit(&[
            ("n3", json!({"state": "FOLLOWER", "term": 4})),
            ("n1", json!({"state": "FOLLOWER", "term": 4})),
        ])
        .await;
    author.event("leader_changed", &json!({"from": "n1", "to": "n2"})).await;
    browser
        .until("#table-t", |text| {
            text.contains("3 rows") && text.contains(r#"{"state":"FOLLOWER","term":4}"#)
        })
        .await;
    browser.until("#events", |text| text.contains("leader_changed") && text.contains(r#""to":"n2""#)).await;

    // The server goes and comes back, and meanwhile the log loses what the page has not seen.
    server.kill().await.unwrap();
    browser.until("#state", |text| text == "connecting").await;
    browser.post("execute/sync", json!({"script": "window.stay = true", "args": []})).await;
    server.restart().await.unwrap();
    author.jetstream = watchpost::testing::jetstream(server.url()).await.unwrap();
    author.commits(3, 1, 3).await;
    browser.until("#seq", |text| text == author.seq.to_string()).await;
    browser.until("#state", |text| text == "live").await;
    let kept =
        browser.post("execute/sync", json!({"script": "return window.stay === true", "args": []})).await;
    assert_eq!(kept, json!(true), "the page was not loaded again");

    // A delta that is missing in the log is a gap on the page.
    author.seq += 2;
    author.commit(&[("n1", json!("after"))]).await;
    browser.until("#gaps", |text| text.contains("are gone")).await;
    browser.until("#table-t", |text| text.contains("\"after\"")).await;
    let picture = browser.screenshot().await;
    assert!(picture.starts_with(b"\x89PNG"), "it is a picture");
    if let Some(file) = std::env::var_os("WATCHPOST_TEST_SCREENSHOT") {
        std::fs::write(file, picture).unwrap();
    }
    browser.close().await;
}
