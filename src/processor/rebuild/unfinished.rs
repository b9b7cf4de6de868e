//! A log that ends within a commit, of which a worker has appended some parts and not yet the others.

use std::time::Duration;

use tokio::time::Instant;

use crate::processor::found::Found;
use crate::processor::open::HeadCommit;

use super::{Error, PAUSE, Rebuild};

impl Rebuild<'_> {
    /// The commit with whose beginning the log ends, unless an earlier run of this began it.
    pub(super) fn unfinished(&self, found: &Found) -> Option<HeadCommit> {
        let head = HeadCommit::read(found.head.as_ref()?).ok()?;
        let is_ours = head.is_turning() && self.is_ours(&head);
        (head.part[0] < head.part[1] && !is_ours).then_some(head)
    }

    /// Gives a worker the time to append the rest of such a commit. Returns whether there was one; then the rest of what was found is out of date.
    pub(super) async fn wait_for_the_rest(&self, found: &mut Found) -> Result<bool, Error> {
        let mut since = None;
        while let Some(half) = self.unfinished(found) {
            let since = since.get_or_insert_with(|| {
                (self.say)(format!("waiting for the rest of commit {}", half.commit));
                Instant::now()
            });
            if since.elapsed() >= LIMIT {
                return Err(self.refuse_half(&half));
            }
            tokio::time::sleep(PAUSE).await;
            let head = found.log.head(&self.partition.commit_subject()).await?;
            if head.as_ref().map(|head| head.seq) != found.head.as_ref().map(|head| head.seq) {
                *since = Instant::now();
            }
            found.head = head;
        }
        Ok(since.is_some())
    }

    /// Says who has to finish it.
    pub(super) fn refuse_half(&self, half: &HeadCommit) -> Error {
        let HeadCommit { commit, part: [part, last], generation, .. } = half;
        let partition = self.partition;
        Error::Refused(if half.is_turning() {
            let fold = generation.as_ref().map_or("", |generation| &generation.fold);
            format!(
                "commit {commit} of {partition} was begun for another fold ({fold}) and is not finished: run this with that manifest first"
            )
        } else {
            format!(
                "commit {commit} of {partition} was begun and not finished: the log has part {part} of {last} and waits for the next. Start a worker \
                 with the former manifest, which finishes it, and run this again"
            )
        })
    }
}

/// How long a commit may rest: longer than it takes until another worker is served in the place of one that died.
const LIMIT: Duration = Duration::from_secs(15);
