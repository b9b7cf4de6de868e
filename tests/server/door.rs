//! The connection that reads publishers' bytes is let in wherever the client is: as the same user, and encrypted in the same way.

use std::time::Duration;

use nkeys::KeyPair;
use watchpost::nats::scan::{Range, Scan};
use watchpost::nats::{self, Auth, Client, ensure};
use watchpost::testing::{Backend, Options, Server, eventually};

use crate::connect::make_certificates;

const LIMIT: Duration = Duration::from_secs(120);

/// Reads an observation back.
async fn reads(client: &Client) {
    ensure::ensure(client, &ensure::policies(None).await.unwrap()).await.unwrap();
    eventually("the observation to be read", LIMIT, async || {
        let subject = "tenant._.observation.f.s".to_owned();
        client.tell(subject, &Vec::new(), "1".into()).await.map_err(|e| e.to_string())?;
        let range = Range { stream: "OBSERVATIONS".to_owned(), filters: Vec::new(), from: 1, to: 1 };
        let mut scan = Scan::open(client, range).await.map_err(|e| e.to_string())?;
        let read = scan.next().await.map_err(|e| e.to_string())?.ok_or("nothing")?;
        if read.payload == "1" { Ok(()) } else { Err(format!("{read:?}")) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn as_a_user_by_token_and_by_nkey() {
    let key = KeyPair::new_user();
    let (seed, public) = (key.seed().unwrap(), key.public_key());
    let password = Auth::Password { user: "ann".to_owned(), password: "right".to_owned() };
    let cases = [
        (password, "user: ann, password: right".to_owned()),
        (Auth::Token("s3cret".to_owned()), "token: s3cret".to_owned()),
        (Auth::Nkey(seed), format!("users: [{{nkey: {public}}}]")),
    ];
    for (auth, authorization) in cases {
        let extra = format!("authorization {{ {authorization} }}");
        let server = Server::start_with(&Options { extra, ..Options::default() }).await.unwrap();
        let options = nats::Options { auth, patience: LIMIT, ..nats::Options::to(server.url()) };
        reads(&nats::connect(&options).await.unwrap()).await;
    }
}

#[tokio::test]
async fn over_tls_with_a_certificate_of_our_own() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    make_certificates(here, "ours");
    let extra = format!(
        "tls {{ cert_file: \"{0}/ours-server.pem\", key_file: \"{0}/ours-key.pem\", ca_file: \"{0}/ours.pem\", verify: true }}",
        here.display()
    );
    // A container would not see the files.
    let server = Server::start_on(Backend::Local, &Options { extra, ..Options::default() }).await.unwrap();
    let mut options = nats::Options { patience: LIMIT, ..nats::Options::to(server.url()) };
    options.tls.ca = Some(here.join("ours.pem"));
    options.tls.identity = Some((here.join("ours-server.pem"), here.join("ours-key.pem")));
    reads(&nats::connect(&options).await.unwrap()).await;
}
