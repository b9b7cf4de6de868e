//! Room for observations that were pulled and are not in the store yet: what bounds the memory of a worker, however many partitions it runs.

use tokio::sync::watch;

/// KiB for all partitions of a worker together, the most that one partition gets of it, and the least, however many there are.
const WORKER: u32 = 32 * 1024;
const MOST: u32 = 16 * 1024;
const LEAST: u32 = 1024;

/// The room of one partition. Each has its own: one that stands still keeps no other from going on.
#[derive(Debug)]
pub struct Room {
    held: watch::Sender<u32>,
    kib: u32,
}

impl Room {
    /// The room of one of so many partitions of a worker.
    #[must_use]
    pub fn share(partitions: usize) -> Self {
        let partitions = u32::try_from(partitions).unwrap_or(u32::MAX).max(1);
        let kib = (WORKER / partitions).clamp(LEAST, MOST);
        Self { held: watch::Sender::new(0), kib }
    }

    /// Takes the room of a body of so many bytes until it is given back. Who asks for messages asks for no more than there is room for.
    pub fn take(&self, bytes: usize) {
        self.held.send_if_modified(|held| {
            *held = held.saturating_add(kib(bytes));
            false // nobody waits for there to be less
        });
    }

    /// Gives back what bodies of so many bytes have taken.
    pub fn give(&self, bodies: impl Iterator<Item = usize>) {
        let kib: u32 = bodies.map(kib).sum();
        self.held.send_modify(|held| *held = held.saturating_sub(kib));
    }

    /// All of it is free again: whoever had what was pulled is gone.
    pub fn clear(&self) {
        self.held.send_replace(0);
    }

    /// Whether something that was pulled is not in the store yet.
    #[must_use]
    pub fn is_used(&self) -> bool {
        *self.held.borrow() > 0
    }

    /// How much of it is free, in KiB.
    pub(super) fn free(&self) -> u64 {
        u64::from(self.kib.saturating_sub(*self.held.borrow()))
    }

    /// How much there is, in KiB.
    pub(super) fn whole(&self) -> u64 {
        u64::from(self.kib)
    }

    /// Tells when some of it was given back.
    pub(super) fn given(&self) -> watch::Receiver<u32> {
        self.held.subscribe()
    }
}

/// What a message takes: headers and names take room too.
pub(super) fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_partitions_hold_as_much_as_two_and_a_thousand_still_get_on() {
        for (partitions, bodies) in [(1, 16 * 1024), (2, 16 * 1024), (8, 4 * 1024), (1000, 1024)] {
            let room = Room::share(partitions);
            for _ in 0..bodies {
                assert!(room.free() > 0);
                room.take(256);
            }
            assert_eq!(room.free(), 0);
            room.give([256].into_iter());
            assert_eq!(room.free(), 1);
        }
    }

    #[test]
    fn what_is_larger_than_the_room_takes_all_of_it_until_it_is_given_back() {
        let room = Room::share(1000);
        room.take(8 << 20);
        assert!(room.is_used());
        assert_eq!(room.free(), 0);
        room.give([8 << 20].into_iter());
        assert!(!room.is_used());
        assert_eq!(room.free(), room.whole());
    }
}
