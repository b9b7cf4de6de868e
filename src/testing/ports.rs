use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::Error;

/// Picks a TCP port that is free now, and that this process has not picked before.
///
/// The port is not held: the caller's server binds it. It lies below the range from which systems choose ports for
/// outgoing connections, so that it also stays free while a killed server is down.
///
/// # Errors
/// [`Error::NoPort`] when many in a row are taken.
pub fn reserve_port() -> Result<u16, Error> {
    static PICKED: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut tried = 0;
    loop {
        let port = fastrand::u16(RANGE);
        tried += 1;
        if !PICKED.lock().unwrap_or_else(PoisonError::into_inner).insert(port) {
            continue;
        }
        match bind(port) {
            Ok(()) => return Ok(port),
            Err(source) if tried >= TRIES => return Err(Error::NoPort { tried, last: port, source }),
            Err(_) => {}
        }
    }
}

fn bind(port: u16) -> io::Result<()> {
    // On every address, because Docker publishes on every address.
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).map(drop)
}

/// Linux chooses outgoing ports from 32768 up, macOS and Windows from 49152.
const RANGE: Range<u16> = 20_000..32_000;

const TRIES: u32 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_handed_out_once_and_can_be_bound() {
        let ports: Vec<u16> = (0..50).map(|_| reserve_port().unwrap()).collect();
        let distinct: BTreeSet<u16> = ports.iter().copied().collect();
        assert_eq!(distinct.len(), ports.len());
        assert!(distinct.iter().all(|port| RANGE.contains(port)));
    }
}
