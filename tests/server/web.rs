//! An HTTP server whose answers a test decides.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A server; gone when it is dropped.
pub(crate) struct Web {
    port: u16,
    pub(crate) seen: Arc<Seen>,
    task: JoinHandle<()>,
}

/// What it was asked for.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Requests to `/count`: the answer is their number.
    pub(crate) count: AtomicU64,
    /// Answers of `/same` that were sent in full.
    pub(crate) full: AtomicU64,
    /// Answers of `/same` that were 304.
    pub(crate) unchanged: AtomicU64,
    /// Whether `/moody` answers 503.
    pub(crate) moody: AtomicU64,
    /// Where `/away` leads to.
    pub(crate) elsewhere: OnceLock<String>,
}

impl Web {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Seen::default());
        let routes = Router::new()
            .route("/count", get(count))
            .route("/same", get(same))
            .route("/moody", get(moody))
            .route("/away", get(away))
            .route("/hang", get(std::future::pending::<String>))
            .route("/page", get(async || "<html>"))
            .route("/large", get(async || format!("\"{}\"", "x".repeat(2000))))
            .with_state(Arc::clone(&seen));
        let task = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { port, seen, task }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn count(State(seen): State<Arc<Seen>>) -> String {
    seen.count.fetch_add(1, Ordering::SeqCst).to_string()
}

async fn same(State(seen): State<Arc<Seen>>, headers: HeaderMap) -> Response {
    if headers.get("if-none-match").is_some_and(|tag| tag == "\"v1\"") {
        seen.unchanged.fetch_add(1, Ordering::SeqCst);
        return StatusCode::NOT_MODIFIED.into_response();
    }
    seen.full.fetch_add(1, Ordering::SeqCst);
    ([("etag", "\"v1\"")], r#"{"a": {"b": [1, 2.50]}}"#).into_response()
}

async fn away(State(seen): State<Arc<Seen>>) -> Redirect {
    Redirect::temporary(seen.elsewhere.get().unwrap())
}

async fn moody(State(seen): State<Arc<Seen>>) -> Response {
    if seen.moody.load(Ordering::SeqCst) == 0 {
        "1".into_response()
    } else {
        StatusCode::SERVICE_UNAVAILABLE.into_response()
    }
}
