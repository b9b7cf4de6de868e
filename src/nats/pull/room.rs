//! Room for observations that were pulled and are not in the store yet: what bounds the memory of a worker, however many partitions it runs.

use tokio::sync::Semaphore;

/// KiB for all partitions of a worker together, the most that one partition gets of it, and the least, however many there are.
const WORKER: u32 = 32 * 1024;
const MOST: u32 = 16 * 1024;
const LEAST: u32 = 1024;

/// The room of one partition. Each has its own: one that stands still keeps no other from going on.
#[derive(Debug)]
pub(super) struct Room {
    free: Semaphore,
    kib: u32,
}

impl Room {
    /// The room of one of so many partitions of a worker.
    pub(super) fn share(partitions: usize) -> Self {
        let partitions = u32::try_from(partitions).unwrap_or(u32::MAX).max(1);
        let kib = (WORKER / partitions).clamp(LEAST, MOST);
        Self { free: Semaphore::new(kib as usize), kib }
    }

    /// Waits until there is room for a body of so many bytes, and takes it until it is given back.
    pub(super) async fn take(&self, bytes: usize) {
        if let Ok(taken) = self.free.acquire_many(self.kib(bytes)).await {
            taken.forget();
        }
    }

    /// Gives back what bodies of so many bytes have taken.
    pub(super) fn give(&self, bodies: impl Iterator<Item = usize>) {
        let kib: u32 = bodies.map(|bytes| self.kib(bytes)).sum();
        self.free.add_permits(kib as usize);
    }

    /// What a message takes: headers and names take room too. One that is larger than the room takes all of it.
    fn kib(&self, bytes: usize) -> u32 {
        u32::try_from(bytes / 1024 + 1).unwrap_or(self.kib).min(self.kib)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Duration, timeout};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn eight_partitions_hold_as_much_as_two_and_a_thousand_still_get_on() {
        for (partitions, bodies) in [(1, 16 * 1024), (2, 16 * 1024), (8, 4 * 1024), (1000, 1024)] {
            let room = Room::share(partitions);
            for _ in 0..bodies {
                timeout(LONG, room.take(256)).await.unwrap();
            }
            timeout(LONG, room.take(256)).await.unwrap_err();
            room.give([256].into_iter());
            timeout(LONG, room.take(256)).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_larger_than_the_room_waits_until_it_is_alone() {
        let room = Room::share(1000);
        timeout(LONG, room.take(8 << 20)).await.unwrap();
        timeout(LONG, room.take(1)).await.unwrap_err();
        room.give([8 << 20].into_iter());
        timeout(LONG, room.take(1)).await.unwrap();
        timeout(LONG, room.take(8 << 20)).await.unwrap_err();
    }
}
