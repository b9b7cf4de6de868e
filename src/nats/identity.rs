//! Who we are to the server, at each connection anew: a credentials file that was renewed counts from the next one on.
//!
//! The client library reads the files of TLS (our certificate, its key, the certificates that we trust) at each connection by itself.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::{AuthError, ConnectOptions};
use nkeys::KeyPair;

use super::connect::Auth;
use super::error::Error;

/// The beginning of the options of a connection.
///
/// # Errors
/// [`Error::Identity`] when a credentials file cannot be read or holds no credentials.
pub(super) async fn begin(auth: &Auth, url: &str) -> Result<ConnectOptions, Error> {
    let options = ConnectOptions::new();
    Ok(match auth {
        Auth::None => options,
        Auth::Password { user, password } => options.user_and_password(user.clone(), password.clone()),
        Auth::Token(token) => options.token(token.clone()),
        Auth::Nkey(seed) => options.nkey(seed.trim().to_owned()),
        Auth::CredentialsFile(path) => {
            let read = Credentials::read(path).await.map_err(|reason| Error::Identity {
                url: url.to_owned(),
                what: format!("credentials file {}", path.display()),
                reason,
            })?;
            let file = Arc::new(File { path: path.clone(), last: Mutex::new(read) });
            ConnectOptions::with_auth_callback(move |nonce| {
                let file = Arc::clone(&file);
                async move { file.sign(&nonce).await }
            })
        }
    })
}

/// A credentials file, and what it held when it could last be read.
struct File {
    path: PathBuf,
    last: Mutex<Credentials>,
}

/// A user's JWT and the seed of its key.
#[derive(Clone, PartialEq)]
pub(super) struct Credentials {
    pub(super) jwt: String,
    pub(super) seed: String,
}

impl File {
    /// Answers the server's challenge with what the file holds now.
    async fn sign(&self, nonce: &[u8]) -> Result<async_nats::Auth, AuthError> {
        let read = Credentials::read(&self.path).await;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(read) if read != *last => {
                tracing::info!(
                    "connecting with the credentials in {}, which were renewed",
                    self.path.display()
                );
                *last = read;
            }
            Ok(_) => {}
            // It is being written just now, or was put away: what it held may still do.
            Err(reason) => {
                tracing::warn!(
                    "the credentials file {} cannot be used now: {reason}; what it held before is",
                    self.path.display()
                );
            }
        }
        let key = KeyPair::from_seed(&last.seed).map_err(AuthError::new)?;
        let mut auth = async_nats::Auth::new();
        auth.jwt = Some(last.jwt.clone());
        auth.signature = Some(key.sign(nonce).map_err(AuthError::new)?);
        Ok(auth)
    }
}

impl Credentials {
    pub(super) async fn read(path: &Path) -> Result<Self, String> {
        let text = tokio::fs::read_to_string(path).await.map_err(|e| e.to_string())?;
        Self::parse(&text)
    }

    /// Reads the two blocks of a `.creds` file, each between two lines of dashes.
    fn parse(text: &str) -> Result<Self, String> {
        let mut blocks = Vec::new();
        let mut inside = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with("---") {
                inside = !inside;
            } else if inside && !line.is_empty() {
                blocks.push(line);
            }
        }
        let [jwt, seed] = blocks.as_slice() else {
            return Err(format!("it has {} blocks between lines of dashes; {EXPECTED}", blocks.len()));
        };
        KeyPair::from_seed(seed).map_err(|e| format!("its seed is none: {e}; {EXPECTED}"))?;
        Ok(Self { jwt: (*jwt).to_owned(), seed: (*seed).to_owned() })
    }
}

const EXPECTED: &str = "expected a .creds file with a JWT and its seed";

#[cfg(test)]
mod tests {
    use super::*;

    fn creds(jwt: &str, key: &KeyPair) -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n************************* IMPORTANT *************************\n\
             NKEY Seed printed below can be used to sign and prove identity.\n\n-----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            key.seed().unwrap()
        )
    }

    #[tokio::test]
    async fn a_renewed_file_counts_at_the_next_connection_and_a_broken_one_leaves_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("user.creds");
        let (first, second) = (KeyPair::new_user(), KeyPair::new_user());
        std::fs::write(&path, creds("first.jwt", &first)).unwrap();
        let last = Mutex::new(Credentials::read(&path).await.unwrap());
        let file = File { path: path.clone(), last };
        let signed_by = async |jwt: &str, key: &KeyPair| {
            let auth = file.sign(b"nonce").await.unwrap();
            assert_eq!(auth.jwt.as_deref(), Some(jwt));
            key.verify(b"nonce", &auth.signature.unwrap()).unwrap();
        };
        signed_by("first.jwt", &first).await;
        std::fs::write(&path, creds("second.jwt", &second)).unwrap();
        signed_by("second.jwt", &second).await;
        std::fs::write(&path, "-----BEGIN NATS USER JWT-----\nhalf").unwrap();
        signed_by("second.jwt", &second).await;
    }

    #[tokio::test]
    async fn a_file_without_credentials_is_refused_before_anything_is_sent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("user.creds");
        for (text, word) in [("", "0 blocks"), ("---\na\n---\n---\nnot a seed\n---\n", "its seed is none")] {
            std::fs::write(&path, text).unwrap();
            let refused =
                begin(&Auth::CredentialsFile(path.clone()), "nats://h:1").await.unwrap_err().to_string();
            assert!(
                refused.contains(word) && refused.contains("user.creds") && refused.contains(EXPECTED),
                "{refused}"
            );
        }
    }
}
