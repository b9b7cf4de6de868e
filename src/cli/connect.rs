//! The connection that the settings describe.

use std::time::Duration;

use watchpost::nats::{self, Auth, Client, Tls};

use super::settings::Settings;

/// Connects; while nobody answers, for `patience`.
pub(crate) async fn connect(settings: &Settings, patience: Duration) -> Result<Client, nats::Error> {
    nats::connect(&options(settings, patience)).await
}

/// Connects and asks. Where an answer does not come, or the cluster of the server that was asked has no leader, the servers of the list are asked
/// one by one: one of them may be cut off from the others, and a single answer may get lost.
pub(crate) async fn ask<T>(
    settings: &Settings,
    question: impl AsyncFn(&Client) -> Result<T, nats::Error>,
) -> Result<T, nats::Error> {
    let once = async |options: &nats::Options| {
        let client = nats::connect(options).await?;
        let answer = question(&client).await;
        client.close().await;
        answer
    };
    let all = options(settings, Duration::ZERO);
    let first = match once(&all).await {
        Err(error) if error.is_away() && !matches!(error, nats::Error::Unreachable { .. }) => error,
        done => return done,
    };
    for server in settings.nats.iter().flat_map(|list| list.split(',')) {
        match once(&nats::Options { servers: vec![server.to_owned()], ..all.clone() }).await {
            Err(error) if error.is_away() => {}
            done => return done,
        }
    }
    Err(first)
}

fn options(settings: &Settings, patience: Duration) -> nats::Options {
    let auth = match (&settings.nats_user, &settings.nats_password) {
        (Some(user), Some(password)) => Auth::Password { user: user.clone(), password: password.0.clone() },
        _ => {
            let token = settings.nats_token.as_ref().map(|token| Auth::Token(token.0.clone()));
            let nkey = settings.nats_nkey.as_ref().map(|seed| Auth::Nkey(seed.0.clone()));
            let creds = settings.nats_creds.clone().map(Auth::CredentialsFile);
            token.or(nkey).or(creds).unwrap_or_default()
        }
    };
    nats::Options {
        servers: settings.nats.clone(),
        auth,
        tls: Tls {
            required: settings.nats_tls,
            ca: settings.nats_tls_ca.clone(),
            identity: settings.nats_tls_cert.clone().zip(settings.nats_tls_key.clone()),
            first: settings.nats_tls_first,
        },
        request_timeout: settings.nats_timeout,
        patience,
        inbox_prefix: settings.nats_inbox_prefix.clone(),
        ..nats::Options::default()
    }
}
