use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Error;

/// A way to a server that a test can cut: it listens on a port of its own and passes bytes on, both ways. It ends with the value.
///
/// ```no_run
/// # async fn example(server: watchpost::testing::Server) -> Result<(), watchpost::testing::Error> {
/// use watchpost::testing::Link;
///
/// let link = Link::to(server.url()).await?;
/// println!("clients connect to {}", link.url());
/// link.cut(); // every connection ends, new ones may be made
/// link.close(); // no new ones either
/// link.open();
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    state: watch::Sender<State>,
    listening: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    cuts: u64,
    closed: bool,
}

impl Link {
    /// Begins to listen for connections to the server at `url`: `nats://host:port`.
    ///
    /// # Errors
    /// [`Error::Listen`] when no port can be had.
    pub async fn to(url: &str) -> Result<Self, Error> {
        let server = url.trim_start_matches("nats://").to_owned();
        let refused = |source| Error::Listen { server: server.clone(), source };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let (state, watched) = watch::channel(State::default());
        let listening = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((from, _)) => {
                        // Now, and not when the new task first runs: a cut that comes between is for this one, too.
                        let State { cuts, closed } = *watched.borrow();
                        if !closed {
                            tokio::spawn(pass(from, server.clone(), watched.clone(), cuts));
                        }
                    }
                    // One connection's end, or no more files just now: the next one may do better.
                    Err(_) => tokio::time::sleep(RETRY).await,
                }
            }
        });
        Ok(Self { address, state, listening })
    }

    /// Where to connect instead, as `nats://host:port`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Ends every connection. New ones may be made.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Ends every connection, and each new one as soon as it is made.
    pub fn close(&self) {
        self.state.send_modify(|state| *state = State { cuts: state.cuts + 1, closed: true });
    }

    /// Lets connections be made again.
    pub fn open(&self) {
        self.state.send_modify(|state| state.closed = false);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Passes bytes on until one side ends or the link is cut once more than `cuts` times, or gone.
async fn pass(mut from: TcpStream, server: String, mut state: watch::Receiver<State>, cuts: u64) {
    let is_cut = state.wait_for(|state| state.cuts > cuts || state.closed);
    let passing = async {
        // A server that is down looks like a connection that ends at once.
        let Ok(mut to) = TcpStream::connect(server).await else { return };
        copy_bidirectional(&mut from, &mut to).await.ok();
    };
    tokio::select! {
        () = passing => {}
        _ = is_cut => {}
    }
}

const RETRY: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    /// What a new connection over the link gives back for `ping`; nothing if it ends first.
    async fn echo(link: &Link) -> Option<[u8; 4]> {
        let mut client = TcpStream::connect(link.address).await.unwrap();
        let mut answer = [0; 4];
        client.write_all(b"ping").await.ok()?;
        client.read_exact(&mut answer).await.ok().map(|_| answer)
    }

    #[tokio::test]
    async fn a_link_passes_bytes_until_it_is_cut_and_none_while_it_is_closed() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let link = Link::to(&format!("nats://{}", server.local_addr().unwrap())).await.unwrap();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = server.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = client.split();
                    tokio::io::copy(&mut from, &mut to).await.ok();
                });
            }
        });
        assert_eq!(echo(&link).await, Some(*b"ping"));
        let mut open = TcpStream::connect(link.address).await.unwrap();
        open.write_all(b"ping").await.unwrap();
        open.read_exact(&mut [0; 4]).await.unwrap();
        link.cut();
        let ended = timeout(Duration::from_secs(60), open.read(&mut [0; 4])).await.unwrap();
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        assert_eq!(echo(&link).await, Some(*b"ping"));
        link.close();
        assert_eq!(echo(&link).await, None);
        link.open();
        assert_eq!(echo(&link).await, Some(*b"ping"));
    }

    #[tokio::test]
    async fn a_cut_right_after_a_connection_ends_it_before_any_byte_is_passed() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = server.local_addr().unwrap().to_string();
        let from = TcpStream::connect(&address).await.unwrap();
        let (_link, watched) = watch::channel(State { cuts: 1, closed: false });
        timeout(Duration::from_secs(60), pass(from, address, watched, 0)).await.unwrap();
    }
}
