//! The connection that the settings describe.

use std::time::Duration;

use watchpost::nats::{self, Auth, Client, Tls};

use super::settings::Settings;

/// Connects; while nobody answers, for `patience`.
pub(crate) async fn connect(settings: &Settings, patience: Duration) -> Result<Client, nats::Error> {
    nats::connect(&options(settings, patience)).await
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
