//! Settings: every one is a flag, an environment variable and a key in a TOML file, in this order of precedence.
//!
//! # Guarantees
//! [`load`] reports everything that is wrong at once, and nothing was started or changed then. Secrets are never shown.

mod layers;
mod problem;
mod table;
mod value;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use watchpost::contract::Tenant;
use watchpost::store;

pub(crate) use layers::{Flags, Loaded, load, unknown_variables};
pub(crate) use problem::{Problem, Problems};
pub(crate) use table::{CONNECTION, DEV, HOLD, LOG, SETTINGS, STORE, STREAMS, Setting, TENANT, WORKER};
pub(crate) use value::{read_time, show_size, show_time};

/// All settings, each named as its key. What they mean stands in [`SETTINGS`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) nats: Vec<String>,
    pub(crate) nats_user: Option<String>,
    pub(crate) nats_password: Option<Secret>,
    pub(crate) nats_token: Option<Secret>,
    pub(crate) nats_nkey: Option<Secret>,
    pub(crate) nats_creds: Option<PathBuf>,
    pub(crate) nats_tls: bool,
    pub(crate) nats_tls_first: bool,
    pub(crate) nats_tls_ca: Option<PathBuf>,
    pub(crate) nats_tls_cert: Option<PathBuf>,
    pub(crate) nats_tls_key: Option<PathBuf>,
    pub(crate) nats_inbox_prefix: String,
    pub(crate) nats_timeout: Duration,
    pub(crate) tenant: Tenant,
    pub(crate) manifests: Option<PathBuf>,
    pub(crate) sources: Option<PathBuf>,
    pub(crate) data: PathBuf,
    pub(crate) store_max_size: u64,
    pub(crate) allow_network_fs: bool,
    pub(crate) tenants: Vec<Tenant>,
    pub(crate) snapshot_commits: u64,
    pub(crate) snapshot_after: Duration,
    pub(crate) priority_timeout: Duration,
    pub(crate) standby: bool,
    pub(crate) patience: Duration,
    pub(crate) drain: Duration,
    pub(crate) streams: Option<PathBuf>,
    pub(crate) replicas: u8,
    pub(crate) max_stream_bytes: Option<u64>,
    pub(crate) nats_server: Option<PathBuf>,
    pub(crate) port: u16,
    pub(crate) log: Option<String>,
    pub(crate) log_format: Format,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// As text on a terminal, as JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl Settings {
    /// How the stores are opened.
    pub(crate) fn store_options(&self) -> store::Options {
        store::Options {
            // They were checked against what this machine can address.
            max_size: usize::try_from(self.store_max_size).unwrap_or(usize::MAX),
            allow_network_fs: self.allow_network_fs,
            ..store::Options::default()
        }
    }

    /// What is wrong with how settings go together; each problem names a key.
    pub(crate) fn validate(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut check = |is_wrong: bool, key: &'static str, what: &str| {
            if is_wrong {
                found.push((key, what.to_owned()));
            }
        };
        check(
            self.nats.is_empty(),
            "nats",
            "is empty, expected at least one address such as nats://127.0.0.1:4222",
        );
        check(
            self.nats_user.is_some() != self.nats_password.is_some(),
            if self.nats_user.is_some() { "nats_password" } else { "nats_user" },
            "is missing: a user and a password go together",
        );
        let identities = [
            ("nats_user", self.nats_user.is_some()),
            ("nats_token", self.nats_token.is_some()),
            ("nats_nkey", self.nats_nkey.is_some()),
            ("nats_creds", self.nats_creds.is_some()),
        ];
        let given: Vec<&'static str> =
            identities.iter().filter(|(_, given)| *given).map(|(key, _)| *key).collect();
        if let [first, second, ..] = given.as_slice() {
            check(true, second, &format!("is given besides {first}: leave one of them out"));
        }
        check(
            self.nats_tls_cert.is_some() != self.nats_tls_key.is_some(),
            if self.nats_tls_cert.is_some() { "nats_tls_key" } else { "nats_tls_cert" },
            "is missing: a certificate and its key go together",
        );
        check(self.nats_timeout < SHORTEST, "nats_timeout", "is too short, expected 100ms or more");
        check(
            self.tenants.is_empty(),
            "tenants",
            "is empty, expected at least one name; _ is the default tenant",
        );
        let mut seen = std::collections::BTreeSet::new();
        for tenant in &self.tenants {
            check(!seen.insert(tenant), "tenants", &format!("names {} twice", tenant.token()));
        }
        check(self.store_max_size < SMALLEST, "store_max_size", "is too small, expected 1MiB or more");
        check(
            usize::try_from(self.store_max_size).is_err(),
            "store_max_size",
            "is more than this machine can address",
        );
        check(self.snapshot_commits == 0, "snapshot_commits", "is 0, expected 1 or more");
        check(self.priority_timeout < SHORTEST, "priority_timeout", "is too short, expected 100ms or more");
        check(![1, 3, 5].contains(&self.replicas), "replicas", "is not one of 1, 3 and 5");
        check(
            self.max_stream_bytes.is_some_and(|bytes| bytes < SMALLEST),
            "max_stream_bytes",
            "is too small, expected 1MiB or more",
        );
        found
    }
}

impl Default for Settings {
    fn default() -> Self {
        let store = store::Options::default();
        let worker = watchpost::runtime::Config::new("watchpost-data");
        let nats = watchpost::nats::Options::default();
        Self {
            nats: nats.servers,
            nats_user: None,
            nats_password: None,
            nats_token: None,
            nats_nkey: None,
            nats_creds: None,
            nats_tls: false,
            nats_tls_first: false,
            nats_tls_ca: None,
            nats_tls_cert: None,
            nats_tls_key: None,
            nats_inbox_prefix: nats.inbox_prefix,
            nats_timeout: nats.request_timeout,
            tenant: Tenant::default(),
            manifests: None,
            sources: None,
            data: worker.data,
            store_max_size: store.max_size as u64,
            allow_network_fs: store.allow_network_fs,
            tenants: worker.tenants,
            snapshot_commits: worker.snapshots.commits,
            snapshot_after: worker.snapshots.after,
            priority_timeout: worker.priority_timeout,
            standby: worker.standby,
            // Long enough for a server that is started together with us.
            patience: Duration::from_secs(30),
            drain: worker.drain,
            streams: None,
            replicas: 1,
            max_stream_bytes: None,
            nats_server: None,
            port: 0,
            log: None,
            log_format: Format::Auto,
        }
    }
}

impl Format {
    fn parse(text: &str) -> Option<Self> {
        [Self::Auto, Self::Text, Self::Json].into_iter().find(|format| format.as_str() == text)
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("********")
    }
}

const SHORTEST: Duration = Duration::from_millis(100);
const SMALLEST: u64 = 1 << 20;
