use crate::runtime::Worker;

/// How often a worker had to begin anew, all its partitions together. What comes out is the same however often that was, so tests count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Turns {
    /// How often a partition was opened.
    pub opened: u64,
    /// How often a state was built anew from the log.
    pub rebuilt: u64,
    /// How often the server began to serve the worker.
    pub taken_over: u64,
    /// How often a consumer was set back to the checkpoint.
    pub resets: u64,
}

impl Turns {
    /// Those of a worker in this process.
    #[must_use]
    pub fn of(worker: &Worker) -> Self {
        worker.status().into_iter().fold(Self::default(), |turns, (_, status)| Self {
            opened: turns.opened + status.opened,
            rebuilt: turns.rebuilt + status.rebuilt,
            taken_over: turns.taken_over + status.taken_over,
            resets: turns.resets + status.resets,
        })
    }

    /// Those that a worker process has told of in its log, which must have its debug lines.
    #[must_use]
    pub fn in_log(log: &str) -> Self {
        let count = |line: &str| log.matches(line).count() as u64;
        Self {
            opened: count("the partition is open"),
            rebuilt: count("caught_up=false"),
            taken_over: count("the server begins to serve this worker"),
            resets: count("the consumer is set back"),
        }
    }
}
