//! Looking after a partition's consumer while the partition works: somebody may pause it, or edit it so that it leaves out a part of the input.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::contract::policy::Consumer;
use crate::contract::policy::consumer::Deviation;
use crate::nats::{self, consumers};

/// Returns why nothing may be read through the consumer, once that is so. `checkpoint` is asked at each look. What was folded since the last good
/// look may have come through a filter that leaves something out.
pub(super) async fn until_it_stops(
    client: &nats::Client,
    policy: &Consumer,
    checkpoint: impl Fn() -> u64,
) -> String {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut good = checkpoint();
    loop {
        look.tick().await;
        let now = checkpoint();
        match consumers::stop(client, policy).await {
            Ok(Some(deviation)) => return describe(&deviation, good, checkpoint()),
            Ok(None) => good = now,
            // The pull itself notices that the server is away.
            Err(error) => tracing::trace!(%error, "a consumer was not looked at"),
        }
    }
}

fn describe(deviation: &Deviation, good: u64, checkpoint: u64) -> String {
    if !deviation.leaves_out || checkpoint <= good {
        return deviation.to_string();
    }
    format!(
        "{deviation}. Input {} to {checkpoint} of {} was folded since it was last found right: what the filter left out there is not in the state, \
         until `watchpost observers rebuild` folds it anew",
        good + 1,
        deviation.stream
    )
}

/// Asked at this pace, it costs the server one question a partition.
const LOOK: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_folded_under_a_wrong_filter_is_named_and_nothing_where_nothing_was() {
        let deviation = Deviation {
            stream: "OBSERVATIONS".to_owned(),
            consumer: "c".to_owned(),
            found: "filter_subject is x".to_owned(),
            remedy: "run y".to_owned(),
            stops: true,
            leaves_out: true,
        };
        let said = describe(&deviation, 7, 9);
        assert!(
            said.contains("Input 8 to 9 of OBSERVATIONS") && said.contains("observers rebuild"),
            "{said}"
        );
        assert_eq!(describe(&deviation, 9, 9), deviation.to_string());
        let paused = Deviation { leaves_out: false, ..deviation };
        assert_eq!(describe(&paused, 7, 9), paused.to_string());
    }
}
