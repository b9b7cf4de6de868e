//! How a connection is made: to which servers, encrypted how, and as whom.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{ServerAddr, ServerInfo};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::BytesMut;
use nkeys::KeyPair;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::contract::id;

use super::super::connect::{Auth, Tls};
use super::super::error::Error;
use super::super::identity::Credentials;
use super::{Connection, Frame, Io};

/// What is needed to be let in.
#[derive(Debug, Clone)]
pub(in super::super) struct Door {
    pub(in super::super) addresses: Vec<ServerAddr>,
    /// These, without passwords.
    pub(in super::super) url: String,
    pub(in super::super) name: String,
    pub(in super::super) auth: Auth,
    pub(in super::super) tls: Tls,
    pub(in super::super) connect_timeout: Duration,
    pub(in super::super) inbox_prefix: String,
}

/// What a server says of itself, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Info {
    tls_required: bool,
    nonce: String,
}

impl Door {
    /// Connects to one of the servers: first to `known`, which another connection has found to be there, as far as its address tells; last to those that
    /// it has told of.
    pub(in super::super) async fn open(&self, known: &ServerInfo) -> Result<Connection, Error> {
        let mut given: Vec<ServerAddr> = self.addresses.clone();
        fastrand::shuffle(&mut given);
        given.sort_by_key(|address| {
            (
                address.port() != known.port,
                address.host() != known.host && address.host() != known.server_name,
            )
        });
        let mut told: Vec<ServerAddr> =
            known.connect_urls.iter().filter_map(|url| url.parse().ok()).collect();
        fastrand::shuffle(&mut told);
        told.retain(|address| !given.contains(address));
        let mut last = None;
        for address in given.iter().chain(&told) {
            let opened = timeout(self.connect_timeout, self.enter(address)).await;
            match opened.unwrap_or_else(|_| Err(self.unreachable("it does not answer in time".into()))) {
                Ok(connection) => return Ok(connection),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| self.unreachable("no address is given".into())))
    }

    async fn enter(&self, address: &ServerAddr) -> Result<Connection, Error> {
        let away = |error: io::Error| self.unreachable(error.into());
        let tcp = TcpStream::connect((address.host(), address.port())).await.map_err(away)?;
        tcp.set_nodelay(true).map_err(away)?;
        let mut io: Box<dyn Io> = Box::new(tcp);
        if self.tls.first {
            io = self.encrypt(io, address.host()).await?;
        }
        let mut connection = self.over(io);
        let info: Info = match connection.next().await.map_err(away)? {
            Frame::Info(info) => serde_json::from_slice(&info).map_err(|e| self.unreachable(e.into()))?,
            Frame::Error(text) => return Err(self.unreachable(text.into())),
            Frame::Message(_) | Frame::Ping | Frame::Pong | Frame::Ok => {
                return Err(self.unreachable("it does not greet as a NATS server does".into()));
            }
        };
        if !self.tls.first && (self.tls.required || address.tls_required() || info.tls_required) {
            let Connection { read, write, .. } = connection;
            connection = self.over(self.encrypt(read.unsplit(write), address.host()).await?);
        }
        let mut hello = json!({
            "verbose": false, "pedantic": false, "echo": true, "headers": true, "no_responders": true, "protocol": 1, "lang": "rust",
            "version": env!("CARGO_PKG_VERSION"), "name": self.name, "tls_required": self.tls.required || address.tls_required(),
        });
        self.identify(&mut hello, &info.nonce).await?;
        connection.write.write_all(format!("CONNECT {hello}\r\nPING\r\n").as_bytes()).await.map_err(away)?;
        connection.write.flush().await.map_err(away)?;
        loop {
            match connection.next().await.map_err(away)? {
                Frame::Pong => return Ok(connection),
                Frame::Error(found) => {
                    let (url, who) = (self.url.clone(), format!("{:?}", self.auth));
                    return Err(Error::Denied { url, who, found });
                }
                Frame::Ping => connection.pong().await.map_err(away)?,
                Frame::Info(_) | Frame::Ok | Frame::Message(_) => {}
            }
        }
    }

    fn over(&self, io: Box<dyn Io>) -> Connection {
        let (read, write) = tokio::io::split(io);
        let inbox = format!("{}.{}", self.inbox_prefix, id::new_message_id().replace('-', ""));
        Connection { read, write, buffer: BytesMut::new(), out: Vec::new(), inbox }
    }

    async fn encrypt(&self, io: Box<dyn Io>, host: &str) -> Result<Box<dyn Io>, Error> {
        let failed = |error: io::Error| Error::Tls { url: self.url.clone(), source: error.into() };
        let tls = self.tls.clone();
        let config = tokio::task::spawn_blocking(move || config(&tls)).await;
        let config = config.map_err(io::Error::other).and_then(|config| config).map_err(failed)?;
        let name = ServerName::try_from(host.to_owned()).map_err(|e| failed(io::Error::other(e)))?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, io).await.map_err(failed)?;
        Ok(Box::new(stream))
    }

    /// Says who we are. Files are read each time: they may have been renewed.
    async fn identify(&self, hello: &mut Value, nonce: &str) -> Result<(), Error> {
        let refuse = |what: String, reason: String| Error::Identity { url: self.url.clone(), what, reason };
        let sign = |seed: &str, what: &str| {
            let pair = KeyPair::from_seed(seed).map_err(|e| refuse(what.to_owned(), e.to_string()))?;
            let signed = pair.sign(nonce.as_bytes()).map_err(|e| refuse(what.to_owned(), e.to_string()))?;
            Ok::<_, Error>((pair.public_key(), BASE64_URL_SAFE_NO_PAD.encode(signed)))
        };
        match &self.auth {
            Auth::None => {}
            Auth::Password { user, password } => {
                hello["user"] = json!(user);
                hello["pass"] = json!(password);
            }
            Auth::Token(token) => hello["auth_token"] = json!(token),
            Auth::Nkey(seed) => {
                let (public, signature) = sign(seed.trim(), "nkey")?;
                hello["nkey"] = json!(public);
                hello["sig"] = json!(signature);
            }
            Auth::CredentialsFile(path) => {
                let what = format!("credentials file {}", path.display());
                let read = Credentials::read(path).await.map_err(|reason| refuse(what.clone(), reason))?;
                hello["jwt"] = json!(read.jwt);
                hello["sig"] = json!(sign(&read.seed, &what)?.1);
            }
        }
        Ok(())
    }

    fn unreachable(&self, source: super::super::error::Source) -> Error {
        Error::Unreachable { url: self.url.clone(), source }
    }
}

fn config(tls: &Tls) -> io::Result<ClientConfig> {
    let unread = |path: &Path, error: &dyn std::fmt::Display| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{} cannot be read: {error}", path.display()))
    };
    let certificates = |path: &Path| {
        CertificateDer::pem_file_iter(path)
            .and_then(|all| all.collect::<Result<Vec<_>, _>>())
            .map_err(|e| unread(path, &e))
    };
    let mut roots = RootCertStore::empty();
    if let Some(ca) = &tls.ca {
        for certificate in certificates(ca)? {
            roots.add(certificate).map_err(|e| unread(ca, &e))?;
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let builder = ClientConfig::builder().with_root_certificates(roots);
    match &tls.identity {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => {
            let private = PrivateKeyDer::from_pem_file(key).map_err(|e| unread(key, &e))?;
            builder.with_client_auth_cert(certificates(certificate)?, private).map_err(io::Error::other)
        }
    }
}
