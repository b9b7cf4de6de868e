//! Where values come from: flags before the environment before the file before the defaults.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use toml::de::{DeTable, DeValue};

use super::table::PREFIX;
use super::{Problem, Problems, SETTINGS, Setting, Settings};

/// The settings of some sections as they were given on the command line.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flags<const SECTIONS: u8> {
    config: Option<PathBuf>,
    given: BTreeMap<&'static str, String>,
}

/// Settings, and where each came from.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// Their values.
    pub(crate) settings: Settings,
    /// The file that was read, if there was one.
    pub(crate) file: Option<PathBuf>,
    origins: BTreeMap<&'static str, Origin>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The command line.
    Flag,
    /// The environment.
    Variable,
    /// A line of a file.
    File(PathBuf, usize),
    /// Nowhere: it is the default.
    Default,
}

/// Brings the layers together.
///
/// # Errors
/// Everything that is wrong with them. What is for other sections is not looked at, except that a file must not hold what is no setting.
pub(crate) fn load<const SECTIONS: u8>(
    flags: &Flags<SECTIONS>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Loaded, Problems> {
    let environment: BTreeMap<OsString, OsString> = environment.into_iter().collect();
    let mut problems = Vec::new();
    let file =
        File::find(flags.config.as_deref(), environment.get(OsStr::new(CONFIG_VARIABLE)), &mut problems);
    let mut loaded = Loaded {
        settings: Settings::default(),
        file: file.as_ref().map(|file| file.path.clone()),
        origins: BTreeMap::new(),
    };
    for setting in SETTINGS.iter().filter(|setting| setting.section & SECTIONS != 0) {
        let Some((text, origin)) = find(setting, &flags.given, &environment, file.as_ref(), &mut problems)
        else {
            continue;
        };
        if let Err(expected) = (setting.read)(&mut loaded.settings, &text) {
            let shown =
                if setting.secret { "a secret".to_owned() } else { format!("\"{}\"", text.escape_debug()) };
            let what = format!("is {shown}, expected {expected}");
            problems.push(Problem { place: origin.place(setting), what });
        }
        loaded.origins.insert(setting.key, origin);
    }
    let place = |key: &str| Setting::of(key).map(|s| loaded.origin(key).place(s)).unwrap_or_default();
    let wrong = loaded.settings.validate().into_iter();
    problems.extend(wrong.map(|(key, what)| Problem { place: place(key), what }));
    if problems.is_empty() { Ok(loaded) } else { Err(Problems(problems)) }
}

impl Loaded {
    /// Where the value of `key` came from.
    pub(crate) fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }
}

impl Origin {
    /// How to name a setting to whoever has to correct it.
    pub(crate) fn place(&self, setting: &Setting) -> String {
        match self {
            Self::Flag => format!("--{}", setting.flag()),
            Self::Variable => format!("the environment variable {}", setting.variable()),
            Self::File(path, line) => format!("{}:{line}: {}", path.display(), setting.key),
            Self::Default => {
                format!(
                    "{} (--{}, {}, or {} in a file)",
                    setting.key,
                    setting.flag(),
                    setting.variable(),
                    setting.key
                )
            }
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Variable => f.write_str("environment"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

fn find(
    setting: &Setting,
    flags: &BTreeMap<&'static str, String>,
    environment: &BTreeMap<OsString, OsString>,
    file: Option<&File>,
    problems: &mut Vec<Problem>,
) -> Option<(String, Origin)> {
    if let Some(text) = flags.get(setting.key) {
        return Some((text.clone(), Origin::Flag));
    }
    // An empty variable is one that a compose file or a script did not fill in.
    if let Some(value) = environment.get(OsStr::new(&setting.variable())).filter(|value| !value.is_empty()) {
        if let Some(text) = value.to_str() {
            return Some((text.to_owned(), Origin::Variable));
        }
        let what = format!("is \"{}\", which is not UTF-8", value.to_string_lossy().escape_debug());
        problems.push(Problem { place: Origin::Variable.place(setting), what });
    }
    let file = file?;
    let (text, line) = file.values.get(setting.key)?;
    Some((text.clone(), Origin::File(file.path.clone(), *line)))
}

/// Variables that look like settings and are none: misspelt, perhaps.
pub(crate) fn unknown_variables(environment: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<String> {
    let names = environment.into_iter().filter_map(|(name, _)| name.into_string().ok());
    let is_unknown = |name: &String| {
        name.starts_with(PREFIX)
            && name != CONFIG_VARIABLE
            && !OTHERS.iter().any(|other| name.starts_with(other))
            && !SETTINGS.iter().any(|setting| setting.variable() == *name)
    };
    let mut unknown: Vec<String> = names.filter(is_unknown).collect();
    unknown.sort();
    unknown
}

/// The file, read as text per key.
struct File {
    path: PathBuf,
    values: BTreeMap<&'static str, (String, usize)>,
}

impl File {
    /// The file that is named, or the default one if it is there.
    fn find(flag: Option<&Path>, variable: Option<&OsString>, problems: &mut Vec<Problem>) -> Option<Self> {
        let (path, place) = match (flag, variable.filter(|path| !path.is_empty())) {
            (Some(path), _) => (path.to_owned(), "--config".to_owned()),
            (None, Some(path)) => {
                (PathBuf::from(path), format!("the environment variable {CONFIG_VARIABLE}"))
            }
            (None, None) => (PathBuf::from(DEFAULT_FILE), String::new()),
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => Some(Self::parse(path, &text, problems)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && place.is_empty() => None,
            Err(error) => {
                let what = format!("cannot be read: {error}; expected a TOML file with `key = value` lines");
                let place = if place.is_empty() {
                    path.display().to_string()
                } else {
                    format!("{place}: {}", path.display())
                };
                problems.push(Problem { place, what });
                None
            }
        }
    }

    fn parse(path: PathBuf, text: &str, problems: &mut Vec<Problem>) -> Self {
        let line_of = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        let shown = path.display().to_string();
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let line = error.span().map_or(1, |span| line_of(span.start));
            problems.push(Problem {
                place: format!("{shown}:{line}"),
                what: format!("is not TOML: {}", error.message()),
            });
        }
        let mut values = BTreeMap::new();
        for (key, value) in table.get_ref() {
            let line = line_of(key.span().start);
            let name = key.get_ref().as_ref();
            let mut refuse =
                |what: String| problems.push(Problem { place: format!("{shown}:{line}: {name}"), what });
            match (Setting::of(name), as_text(value.get_ref())) {
                (None, _) => refuse(match nearest(name) {
                    Some(near) => format!("is no setting; did you mean {near}?"),
                    None => "is no setting; `watchpost config` prints them all".to_owned(),
                }),
                (Some(_), None) => refuse(
                    "has a value of the wrong kind, expected text, a number, true, false or a list of texts"
                        .to_owned(),
                ),
                (Some(setting), Some(text)) => _ = values.insert(setting.key, (text, line)),
            }
        }
        Self { path, values }
    }
}

fn as_text(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.clone().into_owned()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Boolean(switch) => Some(switch.to_string()),
        DeValue::Array(items) => {
            let texts: Option<Vec<String>> = items
                .iter()
                .map(|item| match item.get_ref() {
                    DeValue::String(text) => Some(text.clone().into_owned()),
                    DeValue::Integer(_)
                    | DeValue::Float(_)
                    | DeValue::Boolean(_)
                    | DeValue::Datetime(_)
                    | DeValue::Array(_)
                    | DeValue::Table(_) => None,
                })
                .collect();
            texts.map(|texts| texts.join(","))
        }
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => None,
    }
}

/// The setting whose name is at most two typing mistakes away.
fn nearest(name: &str) -> Option<&'static str> {
    let name = name.replace('-', "_");
    let distances = SETTINGS.iter().map(|setting| (distance(&name, setting.key), setting.key));
    distances.min().filter(|(distance, _)| *distance <= 2).map(|(_, key)| key)
}

/// How many characters must be changed, added or left out to make one text the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row.first().copied().unwrap_or_default();
        let mut left = i + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(&other) {
            let up = *cell;
            left = (diagonal + usize::from(a != *b)).min(up + 1).min(left + 1);
            diagonal = up;
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

impl<const SECTIONS: u8> Args for Flags<SECTIONS> {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new(CONFIG)
            .long(CONFIG)
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help_heading(HEADING)
            .help(format!("TOML file with settings; without it {DEFAULT_FILE} if it is there"));
        let mut command = command.arg(config);
        let defaults = Settings::default();
        for setting in SETTINGS.iter().filter(|setting| setting.section & SECTIONS != 0) {
            let default = setting.shown(&defaults);
            let default = if default.is_empty() || setting.is_switch() {
                default
            } else {
                format!(" [default: {default}]")
            };
            let default = if setting.is_switch() { "" } else { &default };
            let mut arg = Arg::new(setting.key)
                .long(setting.flag())
                .action(ArgAction::Set)
                .help_heading(HEADING)
                // The short help shows what is needed every day.
                .hide_short_help(!EVERYDAY.contains(&setting.key))
                .help(format!("{}{default}", setting.help));
            arg = if setting.is_switch() {
                arg.value_name("true|false")
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true")
            } else {
                arg.value_name(setting.placeholder)
            };
            command = command.arg(arg);
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const SECTIONS: u8> FromArgMatches for Flags<SECTIONS> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.config = matches.get_one::<PathBuf>(CONFIG).cloned();
        for setting in SETTINGS.iter().filter(|setting| setting.section & SECTIONS != 0) {
            if let Some(text) = matches.get_one::<String>(setting.key) {
                self.given.insert(setting.key, text.clone());
            }
        }
        Ok(())
    }
}

const CONFIG: &str = "config";
const CONFIG_VARIABLE: &str = "WATCHPOST_CONFIG";
const DEFAULT_FILE: &str = "watchpost.toml";
const HEADING: &str =
    "Settings (each also as WATCHPOST_… in the environment or in the file; see `watchpost config`)";
const EVERYDAY: [&str; 8] = ["nats", "tenant", "manifests", "sources", "data", "port", "streams", "log"];

/// Variables of the tests, the images and the tools, which are no settings of this program.
const OTHERS: [&str; 9] = [
    "WATCHPOST_TEST_",
    "WATCHPOST_CHAOS_",
    "WATCHPOST_BENCH_",
    "WATCHPOST_CACHE",
    "WATCHPOST_IMAGE",
    "WATCHPOST_NATS_IMAGE",
    "WATCHPOST_NATS_PORT",
    "WATCHPOST_NATS_MONITOR_PORT",
    "WATCHPOST_MANIFESTS_DIR",
];

#[cfg(test)]
mod tests {
    use super::super::{CONNECTION, LOG, STORE, STREAMS, WORKER};
    use super::*;

    const ALL: u8 = u8::MAX;

    fn flags(given: &[(&'static str, &str)]) -> Flags<ALL> {
        let given = given.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        Flags { config: None, given }
    }

    fn environment(given: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        given.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    fn with_file(text: &str) -> (tempfile::NamedTempFile, Flags<ALL>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let flags = Flags { config: Some(file.path().to_owned()), ..Flags::default() };
        (file, flags)
    }

    #[test]
    fn a_flag_goes_before_the_environment_before_the_file_before_the_default() {
        let (file, mut all) = with_file("drain = \"1s\"\npatience = \"1s\"\n\nreplicas = 3\n");
        all.given.insert("drain", "3s".to_owned());
        let loaded =
            load(&all, environment(&[("WATCHPOST_DRAIN", "2s"), ("WATCHPOST_PATIENCE", "2s")])).unwrap();
        let settings = &loaded.settings;
        assert_eq!((settings.drain.as_secs(), settings.patience.as_secs(), settings.replicas), (3, 2, 3));
        assert_eq!(loaded.origin("drain"), Origin::Flag);
        assert_eq!(loaded.origin("patience"), Origin::Variable);
        assert_eq!(loaded.origin("replicas"), Origin::File(file.path().to_owned(), 4));
        assert_eq!(loaded.origin("data"), Origin::Default);
    }

    #[test]
    fn every_setting_is_read_back_from_what_is_shown_of_it() {
        let mut settings = Settings::default();
        for setting in SETTINGS {
            let text = (setting.show)(&settings);
            if !text.is_empty() {
                (setting.read)(&mut settings, &text).unwrap();
            }
        }
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once_with_its_place() {
        let (file, mut all) =
            with_file("drain = 5.5\nreplica = 3\nstore_max_size = \"much\"\n[nats]\nurl = 1\n");
        all.given.insert("port", "99999".to_owned());
        all.given.insert("allow_network_fs", "perhaps".to_owned());
        let wrong = load(&all, environment(&[("WATCHPOST_TENANTS", "acme,A.B"), ("WATCHPOST_LOG", "loud")]))
            .unwrap_err();
        let text = wrong.to_string();
        let file = file.path().display();
        for line in [
            format!("{file}:1: drain: has a value of the wrong kind"),
            format!("{file}:2: replica: is no setting; did you mean replicas?"),
            format!("{file}:3: store_max_size: is \"much\", expected a size"),
            format!("{file}:4: nats: has a value of the wrong kind"),
            "--port: is \"99999\", expected a whole number from 0 to 65535".to_owned(),
            "--allow-network-fs: is \"perhaps\", expected true or false".to_owned(),
            "the environment variable WATCHPOST_TENANTS: is \"acme,A.B\", expected _ for the default tenant, or".to_owned(),
            "the environment variable WATCHPOST_LOG: is \"loud\", expected error, warn".to_owned(),
        ] {
            assert!(text.contains(&line), "{line:?} is not in\n{text}");
        }
        assert_eq!(wrong.0.len(), 8, "{text}");
    }

    #[test]
    fn what_does_not_go_together_is_said_with_what_is_missing() {
        let wrong = load(
            &flags(&[("nats_user", "ann"), ("nats_token", "t"), ("replicas", "2"), ("nats", ",")]),
            environment(&[("WATCHPOST_NATS_TLS_CERT", "c.pem"), ("WATCHPOST_SNAPSHOT_COMMITS", "0")]),
        );
        let text = wrong.unwrap_err().to_string();
        for line in [
            "nats_password (--nats-password, WATCHPOST_NATS_PASSWORD, or nats_password in a file): is missing",
            "--nats-token: is given besides nats_user",
            "nats_tls_key (--nats-tls-key",
            "--replicas: is not one of 1, 3 and 5",
            "--nats: is empty",
            "the environment variable WATCHPOST_SNAPSHOT_COMMITS: is 0",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
    }

    #[test]
    fn what_other_commands_need_is_not_looked_at() {
        let reader: Flags<{ CONNECTION | LOG }> = Flags::default();
        let loaded =
            load(&reader, environment(&[("WATCHPOST_DRAIN", "soon"), ("WATCHPOST_NATS", "nats://h:1")]))
                .unwrap();
        assert_eq!(loaded.settings.nats, ["nats://h:1"]);
        let worker: Flags<{ WORKER | STORE | STREAMS }> = Flags::default();
        assert!(load(&worker, environment(&[("WATCHPOST_DRAIN", "soon")])).is_err());
    }

    #[test]
    fn a_variable_that_is_empty_is_not_given_and_one_that_is_misspelt_is_found() {
        let names = [
            ("WATCHPOST_DRAIN", ""),
            ("WATCHPOST_DRIAN", "1s"),
            ("WATCHPOST_TEST_BACKEND", "local"),
            ("HOME", "/"),
        ];
        assert_eq!(load(&flags(&[]), environment(&names)).unwrap().settings, Settings::default());
        assert_eq!(unknown_variables(environment(&names)), ["WATCHPOST_DRIAN"]);
    }

    #[test]
    fn no_secret_is_shown() {
        let given = [("nats", "nats://bob:s3cret@h:1,nats://g:2"), ("nats_nkey", "s3cret")];
        let loaded = load(&flags(&given), []).unwrap();
        let shown: Vec<String> = SETTINGS.iter().map(|setting| setting.shown(&loaded.settings)).collect();
        let shown = format!("{shown:?} {:?}", loaded.settings.nats_nkey);
        assert!(!shown.contains("s3cret"), "{shown}");
        assert!(shown.contains("nats://********@h:1,nats://g:2"), "{shown}");
    }

    #[test]
    fn a_file_that_is_named_must_be_there() {
        let flags: Flags<ALL> = Flags { config: Some("/nowhere/at.toml".into()), ..Flags::default() };
        let wrong = load(&flags, []).unwrap_err().to_string();
        assert!(wrong.contains("--config: /nowhere/at.toml: cannot be read"), "{wrong}");
    }

    #[test]
    fn names_are_found_by_their_misspellings() {
        assert_eq!((distance("drain", "drain"), distance("drian", "drain"), distance("", "abc")), (0, 2, 3));
        assert_eq!(nearest("max-stream-byte"), Some("max_stream_bytes"));
        assert_eq!(nearest("colour"), None);
    }

    #[test]
    fn a_value_that_cannot_be_read_is_one_problem() {
        let Err(Problems(problems)) = load(&flags(&[("max_stream_bytes", "much")]), []) else {
            panic!("it is no size")
        };
        assert_eq!(problems.len(), 1, "{problems:?}");
    }
}
