//! Whoever cannot connect is told why, with which server, and what to do; whoever could stays connected, come what may.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::time::timeout;
use watchpost::clock::{Clock, System};
use watchpost::nats::{self, Auth, Client, Connection, Error};
use watchpost::testing::{Backend, Options, Server, reserve_port};

use crate::shared;

/// A server that is started meanwhile may be a container.
const DEADLINE: Duration = Duration::from_secs(120);

fn to(url: &str) -> nats::Options {
    nats::Options::to(url)
}

async fn until(client: &Client, wanted: Connection) {
    timeout(DEADLINE, client.connection().wait_for(|c| *c == wanted)).await.unwrap().unwrap();
}

#[tokio::test]
async fn who_may_not_enter_or_may_not_use_jetstream_is_told_so() {
    let accounts = r#"
        accounts {
          A { jetstream: enabled, users: [{user: ann, password: right}] }
          B { users: [{user: bob, password: right}] }
        }"#;
    let server =
        Server::start_with(&Options { extra: accounts.to_owned(), ..Options::default() }).await.unwrap();
    let as_user = async |user: &str, password: &str| {
        let auth = Auth::Password { user: user.to_owned(), password: password.to_owned() };
        nats::connect(&nats::Options { auth, ..to(server.url()) }).await
    };
    as_user("ann", "right").await.unwrap();
    let inline = server.url().replace("nats://", "nats://ann:right@");
    nats::connect(&nats::Options::to(inline)).await.unwrap();

    for refused in [as_user("ann", "wrong").await, nats::connect(&to(server.url())).await] {
        let refused = refused.unwrap_err();
        assert!(matches!(refused, Error::Denied { .. }), "{refused}");
        assert!(
            refused.to_string().contains(server.url()) && !refused.to_string().contains("wrong"),
            "{refused}"
        );
    }
    let without = as_user("bob", "right").await.unwrap_err();
    assert!(matches!(without, Error::NoJetStream { .. }), "{without}");
    assert!(without.to_string().contains("enable it for this account"), "{without}");
}

#[tokio::test]
async fn what_was_told_last_is_sent_before_the_connection_is_closed() {
    let server = shared::server().await;
    let subject = shared::unique("last");
    let listener = async_nats::connect(server.url()).await.unwrap();
    let mut told = listener.subscribe(subject.clone()).await.unwrap();
    listener.flush().await.unwrap();
    let options = to(server.url());
    // As a process that ends: whatever is not done when the connection is closed is never done.
    let ended = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = nats::connect(&options).await.unwrap();
            client.tell(subject, &Vec::new(), "farewell".into()).await.unwrap();
            client.close().await;
        });
    });
    ended.await.unwrap();
    let message = timeout(DEADLINE, told.next()).await.expect("it was not sent").unwrap();
    assert_eq!(message.payload, "farewell");
}

#[tokio::test]
async fn a_connection_lost_and_found_is_told_and_the_client_goes_on() {
    let mut server = Server::start().await.unwrap();
    let client = nats::connect(&nats::Options { patience: DEADLINE, ..to(server.url()) }).await.unwrap();
    assert_eq!(*client.connection().borrow(), Connection::Up);
    server.kill().await.unwrap();
    until(&client, Connection::Down).await;
    server.restart().await.unwrap();
    until(&client, Connection::Up).await;
    client.connected().await;
    nats::server::facts(&client, &System).await.unwrap();
}

#[tokio::test]
async fn with_patience_the_first_connection_waits_for_its_server() {
    let mut server = Server::start().await.unwrap();
    server.kill().await.unwrap();
    let options = nats::Options { patience: DEADLINE, ..to(server.url()) };
    let waiting = tokio::spawn(async move { nats::connect(&options).await });
    server.restart().await.unwrap();
    timeout(DEADLINE, waiting).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_port_that_speaks_something_else_is_no_server() {
    let server = Server::start().await.unwrap();
    let http = server.monitor_url().replace("http://", "nats://");
    let options = nats::Options { connect_timeout: Duration::from_millis(300), ..nats::Options::to(http) };
    let refused = nats::connect(&options).await.unwrap_err();
    assert!(matches!(refused, Error::Unreachable { .. }), "{refused}");
}

#[tokio::test]
async fn a_server_without_tls_is_not_trusted_where_tls_is_required() {
    let server = shared::server().await;
    let mut options = to(server.url());
    options.tls.required = true;
    let refused = nats::connect(&options).await.unwrap_err();
    assert!(matches!(refused, Error::Tls { .. }), "{refused}");
    assert!(refused.to_string().contains(server.url()), "{refused}");
}

/// A CA and a certificate of its for this machine, in files of `directory`: `<name>.pem`, `<name>-server.pem` and `<name>-key.pem`.
pub(crate) fn make_certificates(directory: &Path, name: &str) {
    let key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(ca, key);
    let server_key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .unwrap()
        .signed_by(&server_key, &issuer)
        .unwrap();
    let write = |file: String, text: String| std::fs::write(directory.join(file), text).unwrap();
    write(format!("{name}.pem"), ca_pem);
    write(format!("{name}-server.pem"), server.pem());
    write(format!("{name}-key.pem"), server_key.serialize_pem());
}

#[tokio::test]
async fn a_certificate_is_trusted_by_the_ca_that_signed_it_and_by_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    make_certificates(here, "ours");
    make_certificates(here, "theirs");
    let tls = format!(
        "tls {{ cert_file: \"{0}/ours-server.pem\", key_file: \"{0}/ours-key.pem\" }}",
        here.display()
    );
    // A container would not see the files.
    let options = Options { extra: tls, ..Options::default() };
    let server = Server::start_on(Backend::Local, &options).await.unwrap();
    let with_ca = async |ca: Option<PathBuf>| {
        let mut options = to(server.url());
        options.tls.ca = ca;
        nats::connect(&options).await
    };
    with_ca(Some(here.join("ours.pem"))).await.unwrap();
    for ca in [Some(here.join("theirs.pem")), None] {
        let refused = with_ca(ca).await.unwrap_err();
        assert!(matches!(refused, Error::Tls { .. }), "{refused}");
        assert!(
            refused.to_string().contains("invalid peer certificate") && refused.to_string().contains("CA"),
            "{refused}"
        );
    }
    let missing = with_ca(Some(here.join("nowhere.pem"))).await.unwrap_err();
    assert!(missing.to_string().contains("No such file"), "{missing}");
}

#[tokio::test]
async fn credentials_that_cannot_be_read_are_named_before_anything_is_sent() {
    let mut options = nats::Options::to(format!("nats://127.0.0.1:{}", reserve_port().unwrap()));
    options.auth = Auth::CredentialsFile("/nowhere/at.all".into());
    let refused = nats::connect(&options).await.unwrap_err().to_string();
    assert!(refused.contains("/nowhere/at.all") && refused.contains("credentials"), "{refused}");
}

/// The machine's clock, which is held up for three seconds the first time, as by other work.
#[derive(Debug, Default)]
struct HeldUp(AtomicBool);

impl Clock for HeldUp {
    fn now(&self) -> DateTime<Utc> {
        if !self.0.swap(true, Ordering::Relaxed) {
            #[allow(clippy::disallowed_methods, reason = "the thread itself is held up")]
            std::thread::sleep(Duration::from_secs(3));
        }
        System.now()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_answer_that_is_read_late_is_not_taken_for_a_clock_that_is_wrong() {
    let server = shared::server().await;
    let client = nats::connect(&to(server.url())).await.unwrap();
    nats::ensure::ensure(&client, &nats::ensure::policies(None).await.unwrap()).await.unwrap();
    let facts = nats::server::facts(&client, &HeldUp::default()).await.unwrap();
    // The quickest of the others need only have taken less than three seconds, of which half is what is not known.
    assert!(facts.clock_ahead.unwrap().num_milliseconds().abs() < 1500, "{facts:?}");
}

#[tokio::test]
async fn the_facts_of_a_server_are_plausible() {
    let server = shared::server().await;
    let client = nats::connect(&nats::Options { patience: DEADLINE, ..to(server.url()) }).await.unwrap();
    nats::ensure::ensure(&client, &nats::ensure::policies(None).await.unwrap()).await.unwrap();
    let facts = nats::server::facts(&client, &System).await.unwrap();
    assert!(facts.api_level >= nats::MIN_LEVEL && facts.version.starts_with("2."), "{facts:?}");
    assert!(facts.max_payload >= nats::server::NEEDED_PAYLOAD, "{facts:?}");
    assert!(facts.round_trip < Duration::from_secs(20), "{facts:?}");
    assert!(facts.clock_ahead.unwrap().num_milliseconds().abs() < 20_000, "{facts:?}");
    assert!(facts.streams.used >= 10 && facts.storage.used > 0, "{facts:?}");
}
