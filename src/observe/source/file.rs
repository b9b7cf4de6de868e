//! Following a file of JSON lines.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::collector::Shared;
use super::outlet::{Outlet, Reading};
use super::schedule::next_poll;
use super::status::Report;
use super::tail::{Found, Line, Tail};
use super::{File, Source};

/// How soon a new line is noticed.
const LOOK: Duration = Duration::from_millis(200);

/// Follows the file until told to stop. A file waits for room as long as it takes: what is not read yet is not lost.
pub(super) async fn run(
    shared: &Shared,
    source: &Source,
    file: &File,
    report: Report,
    stop: &CancellationToken,
) {
    let mut outlet = Outlet::new(shared, source, report, stop.clone());
    let mut tail = Tail::new(&file.path, file.from);
    let mut failures = 0;
    loop {
        let Some(found) = stop.run_until_cancelled(tail.read()).await else { break };
        let pause = match found {
            Ok(found) => {
                failures = 0;
                let pause = if found.is_empty() { LOOK } else { Duration::ZERO };
                for found in found {
                    pass_on(&mut outlet, shared, source, found).await;
                    if stop.is_cancelled() {
                        break;
                    }
                }
                pause
            }
            Err(failure) => {
                failures += 1;
                outlet.failure(source.name.clone(), shared.clock.now(), &failure, for_ever()).await;
                next_poll(Duration::from_secs(1), failures, 0.0, 0.0)
            }
        };
        if stop.run_until_cancelled(sleep(pause)).await.is_none() {
            break;
        }
    }
    outlet.close().await;
}

async fn pass_on(outlet: &mut Outlet, shared: &Shared, source: &Source, found: Found) {
    let at = shared.clock.now();
    match found {
        Found::Line(Line { bytes, place: (device, inode, offset) }) => {
            // Device, inode and offset may come again when the file was replaced: the line itself makes the difference.
            let mut identity = format!("{source} {device} {inode} {offset} ").into_bytes();
            identity.extend_from_slice(&bytes);
            let id = Some(Uuid::new_v5(&Uuid::NAMESPACE_OID, &identity).to_string());
            let reading = Reading { source: source.name.clone(), at, id, headers: Vec::new(), body: bytes };
            outlet.reading(reading, for_ever()).await;
        }
        Found::Failure(failure) => outlet.failure(source.name.clone(), at, &failure, for_ever()).await,
    }
}

/// Far enough away; stopping ends every wait.
fn for_ever() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 3600)
}
