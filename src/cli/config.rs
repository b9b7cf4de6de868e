//! `watchpost config`: what every setting is, and where that came from.

use std::fmt::Write as _;

use super::settings::{self, Flags, SETTINGS};
use super::{Exit, Failure, out};

/// Print the effective value of every setting, and where it comes from.
///
/// A flag goes before an environment variable, before a line of the TOML file, before the default. The name is the same everywhere: the
/// setting store_max_size is the flag --store-max-size, the variable WATCHPOST_STORE_MAX_SIZE and the key store_max_size of the file.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  watchpost config                             what a command would use here and now
  WATCHPOST_DRAIN=20s watchpost config         the same with a variable
  watchpost config --config prod.toml --replicas 3

Exit codes:
  0  the settings can be used
  2  they cannot, and every problem was named")]
pub(crate) struct Config {
    #[command(flatten)]
    pub(crate) flags: Flags<{ u8::MAX }>,
}

/// Prints the table.
pub(crate) fn run(config: &Config) -> Result<Exit, Failure> {
    let loaded = settings::load(&config.flags, std::env::vars_os())?;
    let rows: Vec<[String; 3]> = SETTINGS
        .iter()
        .map(|setting| {
            let value = setting.shown(&loaded.settings);
            let value = if value.is_empty() { "-".to_owned() } else { value };
            [setting.key.to_owned(), value, loaded.origin(setting.key).to_string()]
        })
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (key_width, value_width) = (width(0), width(1).min(48));
    let mut text = String::new();
    for [key, value, origin] in &rows {
        // Writing to a String cannot fail.
        writeln!(text, "{key:key_width$}  {value:value_width$}  {origin}").ok();
    }
    match &loaded.file {
        Some(file) => writeln!(text, "\nfile: {}", file.display()).ok(),
        None => writeln!(
            text,
            "\nfile: none (watchpost.toml is not here, and neither --config nor WATCHPOST_CONFIG names one)"
        )
        .ok(),
    };
    out(&text)?;
    for name in settings::unknown_variables(std::env::vars_os()) {
        eprintln!("watchpost: the environment variable {name} is no setting and is ignored");
    }
    Ok(Exit::Done)
}
