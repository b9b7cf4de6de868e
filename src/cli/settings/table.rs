//! The list of all settings: what each is called, what it means, how it is read and shown.
//!
//! Flags, environment variables, keys of the file, `watchpost config` and the table in `docs/operating.md` all come from here.

use std::path::PathBuf;

use watchpost::contract::{Tenant, name};

use super::value::{self, SIZE, SWITCH, TIME};
use super::{Format, Secret, Settings};

/// One setting.
pub(crate) struct Setting {
    /// Its name: the key in the file, and with other spelling the flag and the environment variable.
    pub(crate) key: &'static str,
    /// For which commands it is.
    pub(crate) section: u8,
    /// What stands for its value in help texts; nothing for a switch.
    pub(crate) placeholder: &'static str,
    /// What it means, as a help text.
    pub(crate) help: &'static str,
    /// Whether its value is never shown.
    pub(crate) secret: bool,
    /// Takes a value; else says what is expected.
    pub(super) read: fn(&mut Settings, &str) -> Result<(), String>,
    /// The value as [`Setting::read`] would take it; nothing if there is none.
    pub(super) show: fn(&Settings) -> String,
}

/// Which server, and as whom.
pub(crate) const CONNECTION: u8 = 1;
/// Whose data a reader or publisher means.
pub(crate) const TENANT: u8 = 1 << 1;
/// What a worker does.
pub(crate) const WORKER: u8 = 1 << 2;
/// What the streams must be.
pub(crate) const STREAMS: u8 = 1 << 3;
/// What is logged.
pub(crate) const LOG: u8 = 1 << 4;
/// The server of `watchpost dev`.
pub(crate) const DEV: u8 = 1 << 5;
/// Where the stores are: for a worker, and for whoever looks after its machine.
pub(crate) const STORE: u8 = 1 << 6;
/// How a partition is held: for a worker, and for whoever takes its place for a while.
pub(crate) const HOLD: u8 = 1 << 7;

impl Setting {
    /// The setting of this key.
    pub(crate) fn of(key: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.key == key)
    }

    /// Its flag, without the dashes in front.
    pub(crate) fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    /// Its environment variable.
    pub(crate) fn variable(&self) -> String {
        format!("{PREFIX}{}", self.key.to_ascii_uppercase())
    }

    /// Whether it is on or off and needs no value.
    pub(crate) fn is_switch(&self) -> bool {
        self.placeholder.is_empty()
    }

    /// The value in these settings, for a person: no secrets. Nothing if there is none.
    pub(crate) fn shown(&self, settings: &Settings) -> String {
        let text = (self.show)(settings);
        if self.secret && !text.is_empty() { MASK.to_owned() } else { text }
    }
}

/// What environment variables begin with.
pub(crate) const PREFIX: &str = "WATCHPOST_";
const MASK: &str = "********";

/// All settings, in the order in which they are shown.
pub(crate) const SETTINGS: &[Setting] = &[
    Setting {
        key: "nats",
        section: CONNECTION,
        placeholder: "URL,…",
        help: "NATS servers of one cluster: nats://host:port or tls://host:port, separated by commas",
        secret: false,
        read: |s, text| {
            s.nats = value::list(text).map(ToOwned::to_owned).collect();
            Ok(())
        },
        show: |s| s.nats.iter().map(|url| hide_password(url)).collect::<Vec<_>>().join(","),
    },
    Setting {
        key: "nats_user",
        section: CONNECTION,
        placeholder: "NAME",
        help: "User to connect as",
        secret: false,
        read: |s, text| some(&mut s.nats_user, text.to_owned()),
        show: |s| shown(s.nats_user.as_ref()),
    },
    Setting {
        key: "nats_password",
        section: CONNECTION,
        placeholder: "TEXT",
        help: "Password of that user; better given in the environment, since a command line can be seen by others",
        secret: true,
        read: |s, text| some(&mut s.nats_password, Secret(text.to_owned())),
        show: |s| secret(s.nats_password.as_ref()),
    },
    Setting {
        key: "nats_token",
        section: CONNECTION,
        placeholder: "TEXT",
        help: "Token to connect with",
        secret: true,
        read: |s, text| some(&mut s.nats_token, Secret(text.to_owned())),
        show: |s| secret(s.nats_token.as_ref()),
    },
    Setting {
        key: "nats_nkey",
        section: CONNECTION,
        placeholder: "SEED",
        help: "Seed of an nkey (SU…) to connect with",
        secret: true,
        read: |s, text| some(&mut s.nats_nkey, Secret(text.to_owned())),
        show: |s| secret(s.nats_nkey.as_ref()),
    },
    Setting {
        key: "nats_creds",
        section: CONNECTION,
        placeholder: "FILE",
        help: "Credentials file (.creds) to connect with",
        secret: false,
        read: |s, text| some(&mut s.nats_creds, PathBuf::from(text)),
        show: |s| path(s.nats_creds.as_ref()),
    },
    Setting {
        key: "nats_tls",
        section: CONNECTION,
        placeholder: "",
        help: "Refuse a connection without TLS",
        secret: false,
        read: |s, text| switch(&mut s.nats_tls, text),
        show: |s| s.nats_tls.to_string(),
    },
    Setting {
        key: "nats_tls_first",
        section: CONNECTION,
        placeholder: "",
        help: "Begin with TLS, for servers with handshake_first",
        secret: false,
        read: |s, text| switch(&mut s.nats_tls_first, text),
        show: |s| s.nats_tls_first.to_string(),
    },
    Setting {
        key: "nats_tls_ca",
        section: CONNECTION,
        placeholder: "FILE",
        help: "Certificates to trust instead of the system's (PEM)",
        secret: false,
        read: |s, text| some(&mut s.nats_tls_ca, PathBuf::from(text)),
        show: |s| path(s.nats_tls_ca.as_ref()),
    },
    Setting {
        key: "nats_tls_cert",
        section: CONNECTION,
        placeholder: "FILE",
        help: "Our own certificate (PEM), with its key in nats_tls_key",
        secret: false,
        read: |s, text| some(&mut s.nats_tls_cert, PathBuf::from(text)),
        show: |s| path(s.nats_tls_cert.as_ref()),
    },
    Setting {
        key: "nats_tls_key",
        section: CONNECTION,
        placeholder: "FILE",
        help: "Key of our own certificate (PEM)",
        secret: false,
        read: |s, text| some(&mut s.nats_tls_key, PathBuf::from(text)),
        show: |s| path(s.nats_tls_key.as_ref()),
    },
    Setting {
        key: "nats_inbox_prefix",
        section: CONNECTION,
        placeholder: "SUBJECT",
        help: "What the subjects of answers begin with, for accounts that may only listen on their own",
        secret: false,
        read: |s, text| {
            text.clone_into(&mut s.nats_inbox_prefix);
            Ok(())
        },
        show: |s| s.nats_inbox_prefix.clone(),
    },
    Setting {
        key: "nats_timeout",
        section: CONNECTION,
        placeholder: "TIME",
        help: "How long a request to the server waits for its answer",
        secret: false,
        read: |s, text| time(&mut s.nats_timeout, text),
        show: |s| value::show_time(s.nats_timeout),
    },
    Setting {
        key: "tenant",
        section: TENANT,
        placeholder: "NAME",
        help: "Whose data is meant; _ is the default tenant",
        secret: false,
        read: |s, text| {
            s.tenant = Tenant::from_token(text).map_err(|_| tenant_rule())?;
            Ok(())
        },
        show: |s| s.tenant.token().to_owned(),
    },
    Setting {
        key: "manifests",
        section: WORKER,
        placeholder: "DIR",
        help: "Directory of the observers' manifests (*.yaml)",
        secret: false,
        read: |s, text| some(&mut s.manifests, PathBuf::from(text)),
        show: |s| path(s.manifests.as_ref()),
    },
    Setting {
        key: "sources",
        section: WORKER,
        placeholder: "FILE",
        help: "File that lists the sources to be observed; a change of it is followed while running",
        secret: false,
        read: |s, text| some(&mut s.sources, PathBuf::from(text)),
        show: |s| path(s.sources.as_ref()),
    },
    Setting {
        key: "data",
        section: STORE,
        placeholder: "DIR",
        help: "Directory of the stores, on a local disk; made if it is not there",
        secret: false,
        read: |s, text| {
            s.data = PathBuf::from(text);
            Ok(())
        },
        show: |s| s.data.display().to_string(),
    },
    Setting {
        key: "store_max_size",
        section: STORE,
        placeholder: "SIZE",
        help: "Bound of each partition's store; it takes address space, and disk only as it fills",
        secret: false,
        read: |s, text| size(&mut s.store_max_size, text),
        show: |s| value::show_size(s.store_max_size),
    },
    Setting {
        key: "allow_network_fs",
        section: STORE,
        placeholder: "",
        help: "Use a network file system for the stores; safe only if one host ever touches it",
        secret: false,
        read: |s, text| switch(&mut s.allow_network_fs, text),
        show: |s| s.allow_network_fs.to_string(),
    },
    Setting {
        key: "tenants",
        section: WORKER,
        placeholder: "NAME,…",
        help: "Whose observations this worker folds, separated by commas; _ is the default tenant",
        secret: false,
        read: |s, text| {
            let names = value::list(text).map(Tenant::from_token).collect::<Result<_, _>>();
            s.tenants = names.map_err(|_| tenant_rule())?;
            Ok(())
        },
        show: |s| s.tenants.iter().map(Tenant::token).collect::<Vec<_>>().join(","),
    },
    Setting {
        key: "snapshot_commits",
        section: WORKER,
        placeholder: "N",
        help: "Publish a snapshot after so many commits",
        secret: false,
        read: |s, text| number(&mut s.snapshot_commits, text),
        show: |s| s.snapshot_commits.to_string(),
    },
    Setting {
        key: "snapshot_after",
        section: WORKER,
        placeholder: "TIME",
        help: "Publish a snapshot so long after a change, if there were fewer commits",
        secret: false,
        read: |s, text| time(&mut s.snapshot_after, text),
        show: |s| value::show_time(s.snapshot_after),
    },
    Setting {
        key: "priority_timeout",
        section: WORKER | HOLD,
        placeholder: "TIME",
        help: "How long a worker may be silent before another one is served",
        secret: false,
        read: |s, text| time(&mut s.priority_timeout, text),
        show: |s| value::show_time(s.priority_timeout),
    },
    Setting {
        key: "standby",
        section: WORKER,
        placeholder: "",
        help: "While another worker is served, keep the state current from the log, so as to go on at once",
        secret: false,
        read: |s, text| switch(&mut s.standby, text),
        show: |s| s.standby.to_string(),
    },
    Setting {
        key: "patience",
        section: WORKER,
        placeholder: "TIME",
        help: "How long to try at the start while no server answers; later it is tried for ever",
        secret: false,
        read: |s, text| time(&mut s.patience, text),
        show: |s| value::show_time(s.patience),
    },
    Setting {
        key: "drain",
        section: WORKER,
        placeholder: "TIME",
        help: "How long stopping may take to bring to the log what was folded; the store keeps the rest",
        secret: false,
        read: |s, text| time(&mut s.drain, text),
        show: |s| value::show_time(s.drain),
    },
    Setting {
        key: "streams",
        section: STREAMS,
        placeholder: "DIR",
        help: "Directory of stream policies (*.json) of your own, instead of or besides the built-in ones",
        secret: false,
        read: |s, text| some(&mut s.streams, PathBuf::from(text)),
        show: |s| path(s.streams.as_ref()),
    },
    Setting {
        key: "replicas",
        section: STREAMS,
        placeholder: "N",
        help: "How many servers keep each message: 1, 3 or 5",
        secret: false,
        read: |s, text| number(&mut s.replicas, text),
        show: |s| s.replicas.to_string(),
    },
    Setting {
        key: "max_stream_bytes",
        section: STREAMS,
        placeholder: "SIZE",
        help: "The most that any one stream asks the server to reserve, for a server with little storage",
        secret: false,
        read: |s, text| some(&mut s.max_stream_bytes, value::size(text).ok_or(SIZE)?),
        show: |s| s.max_stream_bytes.map(value::show_size).unwrap_or_default(),
    },
    Setting {
        key: "nats_server",
        section: DEV,
        placeholder: "FILE",
        help: "The NATS server program; otherwise one on PATH, else the one that `make nats-server` installed",
        secret: false,
        read: |s, text| some(&mut s.nats_server, PathBuf::from(text)),
        show: |s| path(s.nats_server.as_ref()),
    },
    Setting {
        key: "port",
        section: DEV,
        placeholder: "PORT",
        help: "Port of the NATS server; 0 lets the system choose a free one",
        secret: false,
        read: |s, text| number(&mut s.port, text),
        show: |s| s.port.to_string(),
    },
    Setting {
        key: "log",
        section: LOG,
        placeholder: "LEVEL",
        help: "error, warn, info, debug, trace or off, or directives such as info,watchpost::nats=debug; without it info \
               for run and dev, and warn for all else",
        secret: false,
        read: |s, text| {
            if !is_filter(text) {
                return Err("error, warn, info, debug, trace or off, or directives TARGET=LEVEL".to_owned());
            }
            some(&mut s.log, text.to_owned())
        },
        show: |s| shown(s.log.as_ref()),
    },
    Setting {
        key: "log_format",
        section: LOG,
        placeholder: "FORMAT",
        help: "text, json or auto: json for run and dev where standard error is no terminal, text otherwise",
        secret: false,
        read: |s, text| {
            s.log_format = Format::parse(text).ok_or("text, json or auto")?;
            Ok(())
        },
        show: |s| s.log_format.as_str().to_owned(),
    },
];

fn some<T>(place: &mut Option<T>, value: T) -> Result<(), String> {
    *place = Some(value);
    Ok(())
}

fn time(place: &mut std::time::Duration, text: &str) -> Result<(), String> {
    *place = value::time(text).ok_or(TIME)?;
    Ok(())
}

fn size(place: &mut u64, text: &str) -> Result<(), String> {
    *place = value::size(text).ok_or(SIZE)?;
    Ok(())
}

fn switch(place: &mut bool, text: &str) -> Result<(), String> {
    *place = value::switch(text).ok_or(SWITCH)?;
    Ok(())
}

fn number<N: std::str::FromStr>(place: &mut N, text: &str) -> Result<(), String> {
    *place = text.trim().parse().map_err(|_| {
        let bits = 8 * size_of::<N>();
        let largest = u64::MAX >> (64 - bits);
        format!("a whole number from 0 to {largest}")
    })?;
    Ok(())
}

fn tenant_rule() -> String {
    format!("_ for the default tenant, or {}", name::RULE)
}

fn shown(value: Option<&String>) -> String {
    value.cloned().unwrap_or_default()
}

fn secret(value: Option<&Secret>) -> String {
    value.map(|secret| secret.0.clone()).unwrap_or_default()
}

fn path(value: Option<&PathBuf>) -> String {
    value.map(|path| path.display().to_string()).unwrap_or_default()
}

/// Whether every part is a level or a directive. The parser of directives takes any lone word for the name of a target, so
/// that a misspelt level would log everything of nobody.
fn is_filter(text: &str) -> bool {
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    let mut parts = text.split(',').map(str::trim);
    parts.all(|part| levels.contains(&part) || part.contains('='))
        && tracing_subscriber::EnvFilter::builder().parse(text).is_ok()
}

fn hide_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    match rest.rsplit_once('@') {
        None => url.to_owned(),
        Some((_, host)) if scheme.is_empty() => format!("{MASK}@{host}"),
        Some((_, host)) => format!("{scheme}://{MASK}@{host}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The documentation's table is this list.
    #[test]
    fn the_documentation_lists_every_setting_as_it_is() {
        let docs = include_str!("../../../docs/operating.md");
        let table =
            docs.split("<!-- settings").nth(1).and_then(|rest| rest.split("<!-- end of settings").next());
        let found: Vec<&str> = table.unwrap().lines().skip(3).filter(|line| line.starts_with('|')).collect();
        let defaults = Settings::default();
        let row = |setting: &Setting| {
            let default = setting.shown(&defaults);
            let default = if default.is_empty() { String::new() } else { format!("`{default}`") };
            format!("| `{}` | {default} | {} |", setting.key, setting.help)
        };
        let expected: Vec<String> = SETTINGS.iter().map(row).collect();
        assert_eq!(found, expected, "the table should be\n{}", expected.join("\n"));
    }
}
