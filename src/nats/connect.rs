//! Connecting: who we are, to which servers, and what is wrong when that fails.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{ConnectErrorKind, ConnectOptions, ServerAddr};
use tokio::time::Instant;

use super::client::{Client, Events};
use super::code;
use super::delay::{FIRST_DELAY, next_delay};
use super::error::{Error, chain};
use super::identity;
use super::selection::Selection;
use super::wire::Door;

/// The oldest server that does everything we rely on.
pub const MIN_VERSION: &str = "2.14";
/// The JetStream API level of that server.
pub const MIN_LEVEL: u64 = 4;

/// Where to connect, and as whom.
#[derive(Debug, Clone)]
pub struct Options {
    /// Addresses of servers of one cluster: `nats://host:port` or `tls://host:port`, one by one or separated by commas. A user and
    /// password in the first address are used if `auth` is [`Auth::None`].
    pub servers: Vec<String>,
    /// What the server calls us in its lists of connections.
    pub name: String,
    /// Who we are.
    pub auth: Auth,
    /// How the connection is encrypted.
    pub tls: Tls,
    /// How long a request waits for its answer.
    pub request_timeout: Duration,
    /// How long a server may take to greet us.
    pub connect_timeout: Duration,
    /// How long the first connection is tried for while nobody answers; zero tries once. Later ones are tried for ever.
    pub patience: Duration,
    /// How often a silent connection is tested. Two tests without an answer end it.
    pub ping_interval: Duration,
    /// What the subjects of answers begin with: an account may be allowed only its own.
    pub inbox_prefix: String,
}

/// Who we are to the server.
#[derive(Clone, Default)]
pub enum Auth {
    /// Nobody in particular.
    #[default]
    None,
    /// A user with a password.
    Password {
        /// Name of the user.
        user: String,
        /// Their password.
        password: String,
    },
    /// A shared secret.
    Token(String),
    /// The seed of an nkey (`SU…`).
    Nkey(String),
    /// A file with a JWT and its seed (`.creds`), read again at each connection.
    CredentialsFile(PathBuf),
}

/// How the connection is encrypted. A server that demands TLS gets it without any of this, if the system trusts its certificate.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Refuse a connection without TLS.
    pub required: bool,
    /// Certificates to trust instead of the system's (PEM).
    pub ca: Option<PathBuf>,
    /// Our own certificate and its key (PEM).
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Begin with TLS instead of upgrading: for servers with `handshake_first`.
    pub first: bool,
}

/// Connects, and checks that the server is new enough and has JetStream.
///
/// # Errors
/// One of [`Error`]'s first eight: address, identity, nobody there, not let in, TLS, no JetStream, no leader, too old. While nobody is there, or
/// JetStream is not yet, every server of the list is tried once, and then all of them for [`Options::patience`]; everything else fails at once.
pub async fn connect(options: &Options) -> Result<Client, Error> {
    let started = Instant::now();
    let servers = listed(options).count();
    // Many workers that start together do not all go to the same server.
    let first = fastrand::usize(..servers.max(1));
    let mut said = false;
    let mut told: Option<Error> = None;
    for attempt in 1.. {
        let error = match connect_once(options, first + attempt - 1).await {
            Ok(client) => return Ok(client),
            Err(error) => error,
        };
        if !error.is_away() {
            return Err(error);
        }
        // Then each server of the list was tried.
        let is_nobody_there = matches!(error, Error::Unreachable { .. });
        // A server that answers tells more than one that is not there.
        let error = if is_nobody_there { told.take().unwrap_or(error) } else { error };
        if attempt < servers && !is_nobody_there {
            told = Some(error);
            continue;
        }
        let pause = next_delay((attempt + 1).saturating_sub(servers).max(1), fastrand::f64());
        if started.elapsed().saturating_add(pause) > options.patience {
            return Err(error);
        }
        if !said {
            said = true;
            tracing::warn!("{error}; trying again for {} s", options.patience.as_secs());
        }
        tokio::time::sleep(pause).await;
    }
    unreachable!("the loop above ends only by returning")
}

impl Options {
    /// To one server, as nobody in particular.
    #[must_use]
    pub fn to(server: impl Into<String>) -> Self {
        Self { servers: vec![server.into()], ..Self::default() }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            servers: vec!["nats://127.0.0.1:4222".to_owned()],
            name: "watchpost".to_owned(),
            auth: Auth::None,
            tls: Tls::default(),
            request_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            patience: Duration::ZERO,
            // The default of a minute would find a half-open connection after two.
            ping_interval: Duration::from_secs(5),
            inbox_prefix: "_INBOX".to_owned(),
        }
    }
}

impl Auth {
    /// As whom we come, for an error text; no secrets.
    fn who(&self) -> String {
        match self {
            Self::None => "a connection without credentials".to_owned(),
            Self::Password { user, .. } => format!("the user \"{}\" with this password", user.escape_debug()),
            Self::Token(_) => "this token".to_owned(),
            Self::Nkey(_) => "this nkey".to_owned(),
            Self::CredentialsFile(path) => format!("the credentials in {}", path.display()),
        }
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.who())
    }
}

/// The addresses one by one.
fn listed(options: &Options) -> impl Iterator<Item = &str> {
    options.servers.iter().flat_map(|list| list.split(','))
}

/// Tries the servers in the order of the list, from number `first` on, round and round.
async fn connect_once(options: &Options, first: usize) -> Result<Client, Error> {
    let (mut addresses, url, inline) = addresses(&options.servers)?;
    let first = first % addresses.len();
    addresses.rotate_left(first);
    let auth = match (&options.auth, inline) {
        (Auth::None, Some(inline)) => inline,
        (auth, _) => auth.clone(),
    };
    // Several dependencies use rustls; the first of them to connect must find one provider, and it is this one.
    // An error only says that one is installed already.
    drop(rustls::crypto::ring::default_provider().install_default());

    let (events, seen) = Events::of(&url);
    let selection = Arc::new(Selection::default());
    let raw = settings(identity::begin(&auth, &url).await?, options, &selection)
        .event_callback(move |event| {
            events.note(&event);
            std::future::ready(())
        })
        .connect(addresses.clone())
        .await
        .map_err(|error| explain(error, &url, &auth))?;

    let door = Door {
        addresses,
        url,
        name: format!("{} input", options.name),
        auth,
        tls: options.tls.clone(),
        connect_timeout: options.connect_timeout,
        inbox_prefix: options.inbox_prefix.clone(),
    };
    let client = Client::new(raw, door, options, seen, selection);
    check(&client).await?;
    Ok(client)
}

fn settings(begun: ConnectOptions, options: &Options, selection: &Arc<Selection>) -> ConnectOptions {
    let selection = Arc::clone(selection);
    let mut settings = begun
        .name(&options.name)
        .ping_interval(options.ping_interval)
        .connection_timeout(options.connect_timeout)
        .request_timeout(Some(options.request_timeout))
        .custom_inbox_prefix(&options.inbox_prefix)
        // The first connection goes over the list in the order that it is given.
        .retain_servers_order()
        .reconnect_delay_callback(|attempt| {
            if attempt <= 1 { FIRST_DELAY } else { next_delay(attempt, fastrand::f64()) }
        })
        .reconnect_to_server_callback(move |servers, info| {
            std::future::ready(selection.choose(&servers, &info, Instant::now(), fastrand::f64()))
        });
    if options.tls.required {
        settings = settings.require_tls(true);
    }
    if options.tls.first {
        settings = settings.tls_first();
    }
    if let Some(ca) = &options.tls.ca {
        settings = settings.add_root_certificates(ca.clone());
    }
    if let Some((certificate, key)) = &options.tls.identity {
        settings = settings.add_client_certificate(certificate.clone(), key.clone());
    }
    settings
}

/// The addresses, their text without passwords, and the identity in the first of them.
fn addresses(servers: &[String]) -> Result<(Vec<ServerAddr>, String, Option<Auth>), Error> {
    let mut inline = None;
    let mut shown = Vec::new();
    let mut addresses = Vec::new();
    for server in servers.iter().flat_map(|list| list.split(',')) {
        let address: ServerAddr = server
            .trim()
            .parse()
            .map_err(|e: std::io::Error| Error::Url { url: redact(server), reason: e.to_string() })?;
        if !matches!(address.scheme(), "nats" | "tls") {
            let reason = format!("the scheme {} is not supported", address.scheme());
            return Err(Error::Url { url: redact(server), reason });
        }
        if inline.is_none() {
            inline = match (address.username(), address.password()) {
                (None, _) => None,
                (Some(user), Some(password)) => {
                    Some(Auth::Password { user: user.to_owned(), password: password.to_owned() })
                }
                (Some(token), None) => Some(Auth::Token(token.to_owned())),
            };
        }
        shown.push(redact(server));
        addresses.push(address);
    }
    if addresses.is_empty() {
        return Err(Error::Url { url: String::new(), reason: "no address is given".to_owned() });
    }
    Ok((addresses, shown.join(","), inline))
}

/// An address without what stands before its `@`, escaped so that it can be printed.
fn redact(server: &str) -> String {
    let server = server.trim();
    let (scheme, rest) = server.split_once("://").unwrap_or(("", server));
    let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let separator = if scheme.is_empty() { "" } else { "://" };
    format!("{scheme}{separator}{rest}").escape_debug().to_string()
}

fn explain(error: async_nats::ConnectError, url: &str, auth: &Auth) -> Error {
    let url = url.to_owned();
    let text = chain(&error);
    match error.kind() {
        ConnectErrorKind::ServerParse => Error::Url { url, reason: text },
        ConnectErrorKind::Authentication => {
            Error::Identity { url, what: format!("identity ({})", auth.who()), reason: text }
        }
        ConnectErrorKind::AuthorizationViolation => Error::Denied { url, who: auth.who(), found: text },
        ConnectErrorKind::Tls => Error::Tls { url, source: Box::new(error) },
        // What TLS finds wrong arrives as an I/O error.
        ConnectErrorKind::Io if is_tls(&error) => Error::Tls { url, source: Box::new(error) },
        ConnectErrorKind::Dns
        | ConnectErrorKind::TimedOut
        | ConnectErrorKind::Io
        | ConnectErrorKind::MaxReconnects => Error::Unreachable { url, source: text.into() },
    }
}

/// Whether TLS is what an error comes from.
pub(crate) fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut at = Some(error);
    while let Some(cause) = at {
        if cause.is::<rustls::Error>() {
            return true;
        }
        // An I/O error hides what it was made of from `source`.
        let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        at = inner.map_or_else(|| cause.source(), |inner| Some(inner));
    }
    false
}

/// Whether the server has what we rely on.
async fn check(client: &Client) -> Result<(), Error> {
    use async_nats::jetstream::context::AccountErrorKind;

    let info = client.raw().server_info();
    let too_old = |level, missing| Error::TooOld {
        url: client.url().to_owned(),
        version: info.version.clone(),
        level,
        missing,
    };
    let asking = "asking for JetStream's state";
    match client.answer(asking, "INFO", client.jetstream().query_account()).await? {
        Ok(account) => {
            let level = account.requests.level as u64;
            if level < MIN_LEVEL {
                return Err(too_old(level, "it cannot reset a consumer"));
            }
            Ok(())
        }
        // A server too old to be understood at all is told by its version.
        Err(_) if !client.raw().is_server_compatible(2, 14, 0) => {
            Err(too_old(0, "it cannot reset a consumer"))
        }
        Err(error) => match error.kind() {
            AccountErrorKind::JetStreamUnavailable => Err(Error::NoJetStream {
                url: client.url().to_owned(),
                found: "nobody answers JetStream's API".to_owned(),
            }),
            AccountErrorKind::JetStream(api) if api.error_code().0 == code::NO_LEADER => {
                Err(Error::NoLeader { url: client.url().to_owned(), server: info.server_name })
            }
            AccountErrorKind::JetStream(api) => {
                Err(Error::NoJetStream { url: client.url().to_owned(), found: api.to_string() })
            }
            AccountErrorKind::TimedOut | AccountErrorKind::Other => Err(client.failed(asking, &error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_ever_shown() {
        let servers = ["nats://bob:s3cret@h:1".to_owned(), "tls://s3cret@g".to_owned()];
        let (each, shown, inline) = addresses(&servers).unwrap();
        assert_eq!((each.len(), &*shown), (2, "nats://h:1,tls://g"));
        assert_eq!(addresses(&["nats://a:1, tls://b@c".to_owned()]).unwrap().1, "nats://a:1,tls://c");
        assert!(
            matches!(&inline, Some(Auth::Password { user, password }) if user == "bob" && password == "s3cret")
        );
        assert!(!format!("{inline:?}").contains("s3cret"));
        let refused = addresses(&["http://bob:s3cret@h:1".to_owned()]).unwrap_err().to_string();
        assert!(
            refused.contains("http") && refused.contains("nats://HOST:PORT") && !refused.contains("s3cret"),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn nobody_there_is_said_with_the_address_and_what_to_do() {
        // A port that nobody listens on, and that nobody else gets meanwhile.
        let bound = tokio::net::TcpSocket::new_v4().unwrap();
        bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = bound.local_addr().unwrap().port();
        let url = format!("nats://127.0.0.1:{port}");
        let refused = connect(&Options::to(&url)).await.unwrap_err();
        assert!(matches!(refused, Error::Unreachable { .. }), "{refused}");
        assert!(
            refused.to_string().contains(&url) && refused.to_string().contains("start a server"),
            "{refused}"
        );
    }
}
