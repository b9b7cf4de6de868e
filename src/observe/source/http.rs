//! Asking an HTTP server again and again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use chrono::{DateTime, TimeDelta};
use reqwest::header::{DATE, ETAG, HeaderMap, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};
use reqwest::redirect::Policy;
use reqwest::{Certificate, StatusCode, Url};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::contract::json;
use crate::contract::observation::Failure;
use crate::nats::is_tls;

use super::collector::Shared;
use super::outlet::{Outlet, Reading};
use super::pick::pick;
use super::schedule::{first_poll, next_poll};
use super::status::Report;
use super::{Http, Source};

/// Reads the source until it is told to stop.
pub(super) async fn run(
    shared: &Shared,
    source: &Source,
    http: &Http,
    report: Report,
    stop: &CancellationToken,
) {
    let mut outlet = Outlet::new(shared, source, report.clone(), stop.clone());
    let mut server = Server { http, last: None };
    let mut due = Instant::now() + first_poll(http.every, http.jitter, fastrand::f64());
    while stop.run_until_cancelled(sleep_until(due)).await.is_some() {
        let started = Instant::now();
        let at = shared.clock.now();
        let Some(answer) = stop.run_until_cancelled(server.ask(&shared.http)).await else { break };
        let failures = if answer.is_ok() { 0 } else { report.get().failures.saturating_add(1) };
        // Where an answer took longer than the interval, the next reading is due at once, and those in between are left out.
        due = (started + next_poll(http.every, failures, http.jitter, fastrand::f64())).max(Instant::now());
        // Room for it is waited for until there is something newer.
        let name = source.name.clone();
        match answer {
            Ok(body) => {
                outlet.reading(Reading { source: name, at, id: None, headers: Vec::new(), body }, due).await
            }
            Err(failure) => outlet.failure(name, at, &failure, due).await,
        }
    }
    outlet.close().await;
}

/// A server, and what it said last.
struct Server<'a> {
    http: &'a Http,
    last: Option<Last>,
}

/// What can be asked for on condition that it has changed.
struct Last {
    condition: HeaderMap,
    body: Bytes,
}

impl Server<'_> {
    /// One answer, to its last byte.
    async fn ask(&mut self, clients: &Clients) -> Result<Bytes, Failure> {
        match timeout(self.http.timeout, self.answer(clients)).await {
            Ok(answer) => answer,
            Err(_) => fail(
                "timeout",
                format!("{} did not answer completely within {:?}", self.shown(), self.http.timeout),
            ),
        }
    }

    async fn answer(&mut self, clients: &Clients) -> Result<Bytes, Failure> {
        let client = clients.get(self.http).await?;
        let mut request = client.get(&self.http.url);
        if let Some(last) = &self.last {
            request = request.headers(last.condition.clone());
        }
        let mut answer = request.send().await.map_err(|e| self.failure(&e))?;
        let status = answer.status();
        if let (StatusCode::NOT_MODIFIED, Some(last)) = (status, &self.last) {
            // It still says what it said: a reading like any other, so that it counts as seen.
            return Ok(last.body.clone());
        }
        if !status.is_success() {
            return fail("status", format!("{} answers {status}, expected 200", self.shown()));
        }
        let condition = condition(answer.headers());
        let mut whole = BytesMut::new();
        while let Some(piece) = answer.chunk().await.map_err(|e| self.failure(&e))? {
            if whole.len() + piece.len() > self.http.max_bytes {
                return fail(
                    "body",
                    format!("{} answers more than {} bytes (max_bytes)", self.shown(), self.http.max_bytes),
                );
            }
            whole.extend_from_slice(&piece);
        }
        let body = match reading(&whole, &self.http.pointer) {
            Ok(body) => body,
            Err(reason) => {
                return fail(
                    "body",
                    format!("{} answers something else than expected: {reason}", self.shown()),
                );
            }
        };
        self.last = condition.map(|condition| Last { condition, body: body.clone() });
        Ok(body)
    }

    fn failure(&self, error: &reqwest::Error) -> Failure {
        let stage = match error {
            _ if is_tls(error) => "tls",
            _ if error.is_redirect() => "redirect",
            _ if error.is_connect() => "connect",
            _ => "read",
        };
        let mut text = String::new();
        let mut at: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
        while let Some(cause) = at {
            let more = cause.to_string();
            if !text.contains(&more) {
                if !text.is_empty() {
                    text.push_str(": ");
                }
                text.push_str(&more);
            }
            at = cause.source();
        }
        if text.is_empty() {
            text = error.to_string();
        }
        Failure { stage: stage.to_owned(), message: format!("{} cannot be read: {text}", self.shown()) }
    }

    /// The address without what could be a secret: user, password, query.
    fn shown(&self) -> String {
        match Url::parse(&self.http.url) {
            Ok(url) => shown(&url),
            Err(_) => "the address".to_owned(),
        }
    }
}

/// The part of an answer that is the observation. What no observer could read is a failure of the source, here where it shows.
fn reading(whole: &[u8], pointer: &str) -> Result<Bytes, String> {
    let part = pick(whole, pointer)?.get().as_bytes();
    json::check(part).map_err(|e| format!("not JSON: {e}"))?;
    Ok(Bytes::copy_from_slice(part))
}

fn shown(url: &Url) -> String {
    let port = url.port().map(|p| format!(":{p}")).unwrap_or_default();
    format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

fn is_https(url: &Url) -> bool {
    url.scheme() == "https"
}

/// The header that asks for an answer only if it is another one; `None` if the server gave nothing to ask by.
fn condition(headers: &HeaderMap) -> Option<HeaderMap> {
    let (name, value) = match (headers.get(ETAG), headers.get(LAST_MODIFIED)) {
        (Some(tag), _) => (IF_NONE_MATCH, tag),
        (None, Some(modified)) if is_settled(modified, headers.get(DATE)?) => (IF_MODIFIED_SINCE, modified),
        (None, _) => return None,
    };
    Some(HeaderMap::from_iter([(name, value.clone())]))
}

/// Whether what was modified then can have changed no more within the same second, which the time would not tell.
fn is_settled(modified: &HeaderValue, date: &HeaderValue) -> bool {
    let time = |value: &HeaderValue| DateTime::parse_from_rfc2822(value.to_str().ok()?).ok();
    time(modified).zip(time(date)).is_some_and(|(modified, date)| date - modified >= SETTLED)
}

/// A second for either of the two times.
const SETTLED: TimeDelta = TimeDelta::seconds(2);

fn fail<T>(stage: &str, message: String) -> Result<T, Failure> {
    Err(Failure { stage: stage.to_owned(), message })
}

/// HTTP clients by what they trust: each holds the system's certificates, which is too much for one per source.
#[derive(Debug, Default)]
pub(super) struct Clients(Mutex<HashMap<Trust, reqwest::Client>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Trust {
    /// There is no TLS.
    Nobody,
    System,
    File(PathBuf),
}

impl Clients {
    async fn get(&self, http: &Http) -> Result<reqwest::Client, Failure> {
        let trust = match &http.ca {
            Some(ca) => Trust::File(ca.clone()),
            None if Url::parse(&http.url).is_ok_and(|url| is_https(&url)) => Trust::System,
            None => Trust::Nobody,
        };
        if let Some(client) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&trust) {
            return Ok(client.clone());
        }
        // Several dependencies use rustls; the first of them must find one provider. An error says that one is installed already.
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut builder =
            reqwest::Client::builder().user_agent(concat!("watchpost/", env!("CARGO_PKG_VERSION")));
        builder = match &trust {
            // A system without certificates is good enough where none is needed.
            Trust::Nobody => builder.tls_certs_only([]).redirect(Policy::custom(|attempt| {
                if !is_https(attempt.url()) {
                    return Policy::default().redirect(attempt);
                }
                let to = shown(attempt.url());
                attempt.error(format!("it leads to {to}: make that the url of the source"))
            })),
            Trust::System => builder,
            Trust::File(path) => builder.tls_certs_only(certificates(path).await?),
        };
        let client = match builder.build() {
            Ok(client) => client,
            Err(error) => return fail("tls", format!("no HTTPS client can be made: {error}")),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(trust, client.clone());
        Ok(client)
    }
}

async fn certificates(path: &Path) -> Result<Vec<Certificate>, Failure> {
    let refuse = |reason: String| {
        fail("tls", format!("the certificates in {} cannot be used: {reason}", path.display()))
    };
    match tokio::fs::read(path).await {
        Err(error) => refuse(error.to_string()),
        Ok(pem) => match Certificate::from_pem_bundle(&pem) {
            Ok(certificates) if certificates.is_empty() => refuse("there are none, expected PEM".to_owned()),
            Ok(certificates) => Ok(certificates),
            Err(error) => refuse(error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(headers: &[(&'static str, &'static str)]) -> Vec<(String, String)> {
        let pairs =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        let condition = condition(&pairs.collect()).unwrap_or_default();
        let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
        condition.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
    }

    #[test]
    fn what_may_change_within_the_second_is_asked_for_without_a_condition() {
        let changed = ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT");
        let conditional = [("if-modified-since".to_owned(), changed.1.to_owned())];
        assert_eq!(asked(&[changed, ("date", "Sun, 06 Nov 1994 08:49:39 GMT")]), conditional);
        for date in ["Sun, 06 Nov 1994 08:49:38 GMT", "Sun, 06 Nov 1994 08:49:37 GMT", "today"] {
            assert_eq!(asked(&[changed, ("date", date)]), [], "{date}");
        }
        assert_eq!(asked(&[changed]), [], "nobody knows how long ago that was");
        assert_eq!(asked(&[("last-modified", "now"), ("date", "Sun, 06 Nov 1994 08:49:39 GMT")]), []);
    }

    #[test]
    fn what_no_observer_could_read_is_no_reading() {
        assert_eq!(&*reading(b" {\"a\": [1e400, {\"b\" : 2}]} ", "/a/1").unwrap(), b"{\"b\" : 2}");
        let deep = format!("{}{}", "[".repeat(101), "]".repeat(101));
        let cases: [(&[u8], &str); 5] = [
            (b"{\"a\": 1e400}", "not JSON: number out of range at line 1 column 11"),
            (b"[\"\\ud800\"]", "not JSON: unexpected end of hex escape"),
            (b"\"\xff\"", "not JSON: "),
            (deep.as_bytes(), "not JSON: nested deeper than 100 levels"),
            (b"<html>", "not JSON: expected value at line 1 column 1"),
        ];
        for (answer, expected) in cases {
            let why = reading(answer, "").unwrap_err();
            assert!(why.starts_with(expected), "{why}");
        }
    }

    #[test]
    fn a_tag_says_more_than_a_time() {
        let headers = [
            ("etag", "\"v1\""),
            ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("date", "Sun, 06 Nov 1995 08:49:37 GMT"),
        ];
        assert_eq!(asked(&headers), [("if-none-match".to_owned(), "\"v1\"".to_owned())]);
    }
}
