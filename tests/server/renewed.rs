//! Credentials expire while a worker is connected, and somebody has renewed their file by then.

use std::path::Path;
use std::time::Duration;

use nkeys::KeyPair;
use serde_json::{Value, json};
use watchpost::clock::{Clock as _, System};
use watchpost::nats::{self, Auth, Connection};
use watchpost::testing::{Options, Server};

const LIMIT: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_credentials_expire_comes_back_with_the_renewed_ones() {
    let (operator, account) = (KeyPair::new_operator(), KeyPair::new_account());
    let none = -1;
    let limits = json!({
        "conn": none, "leaf": none, "imports": none, "exports": none, "wildcards": true, "subs": none, "data": none, "payload": none,
        "mem_storage": none, "disk_storage": none, "streams": none, "consumer": none,
    });
    let operator_jwt =
        sign(&operator, &operator.public_key(), None, &json!({"type": "operator", "version": 2}));
    let mut claims = json!({"type": "account", "version": 2, "limits": limits});
    let account_jwt = sign(&operator, &account.public_key(), None, &claims);
    // The system's account has no JetStream.
    claims["limits"]["mem_storage"] = json!(0);
    claims["limits"]["disk_storage"] = json!(0);
    let system = KeyPair::new_account();
    let system_jwt = sign(&operator, &system.public_key(), None, &claims);
    let extra = format!(
        "operator: {operator_jwt}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {account_jwt}, {}: {system_jwt} }}\n",
        system.public_key(),
        account.public_key(),
        system.public_key()
    );
    let server = Server::start_with(&Options { extra, ..Options::default() }).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("user.creds");
    write(&path, &account, Some(SOON));
    let auth = Auth::CredentialsFile(path.clone());
    let options = nats::Options { auth, patience: LIMIT, ..nats::Options::to(server.url()) };
    let client = nats::connect(&options).await.unwrap();
    let first = client.connects();
    write(&path, &account, None);
    let mut connection = client.connection();
    tokio::time::timeout(
        LIMIT,
        connection.wait_for(|now| *now == Connection::Down || client.connects() > first),
    )
    .await
    .expect("the server never ended it")
    .unwrap();
    tokio::time::timeout(
        LIMIT,
        connection.wait_for(|now| *now == Connection::Up && client.connects() > first),
    )
    .await
    .expect("it never came back")
    .unwrap();
    nats::server::facts(&client, &System).await.unwrap();
}

/// Writes the credentials of another user of the account, which expire after so many seconds.
fn write(path: &Path, account: &KeyPair, expires: Option<i64>) {
    let user = KeyPair::new_user();
    let claims =
        json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}});
    let jwt = sign(account, &user.public_key(), expires, &claims);
    let seed = user.seed().unwrap();
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    std::fs::write(path, text).unwrap();
}

/// A JWT as NATS has them.
fn sign(issuer: &KeyPair, subject: &str, expires: Option<i64>, nats: &Value) -> String {
    let now = System.now().timestamp();
    let mut claims = json!({"jti": subject, "iat": now, "iss": issuer.public_key(), "name": "test", "sub": subject, "nats": nats});
    if let Some(expires) = expires {
        claims["exp"] = json!(now + expires);
    }
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let signed =
        format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", encode(&signature))
}

/// Base64 for URLs, without padding.
fn encode(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let number = chunk.iter().fold(0_u32, |number, byte| (number << 8) | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for letter in 0..=chunk.len() {
            text.push(char::from(LETTERS[((number >> (18 - 6 * letter)) & 63) as usize]));
        }
    }
    text
}

/// Long enough to connect by.
const SOON: i64 = 10;
