//! Where the list of sources comes from.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use super::{Source, config};

/// How often a list that may change is asked for.
const EVERY: Duration = Duration::from_secs(1);

/// Says which sources there are. A list that never changes is a `Vec<Source>`; a function that returns one is asked again and again;
/// [`ListFile`] reads it from a file.
pub trait Provider: Send + 'static {
    /// The list as it is now. `Err` is a sentence for a person; the last good list stays in force.
    fn sources(&mut self) -> impl Future<Output = Result<Vec<Source>, String>> + Send;

    /// How long after one answer it may have changed; `None` if it never will.
    fn every(&self) -> Option<Duration> {
        Some(EVERY)
    }
}

impl Provider for Vec<Source> {
    async fn sources(&mut self) -> Result<Vec<Source>, String> {
        Ok(self.clone())
    }

    fn every(&self) -> Option<Duration> {
        None
    }
}

impl<F, Fut> Provider for F
where
    F: FnMut() -> Fut + Send + 'static,
    Fut: Future<Output = Result<Vec<Source>, String>> + Send,
{
    fn sources(&mut self) -> impl Future<Output = Result<Vec<Source>, String>> + Send {
        self()
    }
}

/// A YAML file that lists sources (see [`super::read`]), read again whenever it has changed.
#[derive(Debug)]
pub struct ListFile {
    path: PathBuf,
    /// The text that was read last, and what it meant.
    last: Option<(String, Result<Vec<Source>, String>)>,
}

impl ListFile {
    /// The list in the file at `path`.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), last: None }
    }
}

impl Provider for ListFile {
    async fn sources(&mut self) -> Result<Vec<Source>, String> {
        let read = tokio::fs::read_to_string(&self.path).await;
        let text =
            read.map_err(|e| format!("the list of sources {} cannot be read: {e}", self.path.display()))?;
        if let Some((last, meaning)) = &self.last
            && *last == text
        {
            return meaning.clone();
        }
        let meaning =
            config::read(&self.path.display().to_string(), &text).map_err(|problems| problems.to_string());
        self.last = Some((text, meaning.clone()));
        meaning
    }
}
