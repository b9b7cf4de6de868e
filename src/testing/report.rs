use std::env;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use super::Error;

/// Says that a test could not be run here and why. `make test` counts it as skipped, so it is said once by each test.
///
/// # Errors
/// [`Error::Io`] when it cannot be written to where `make test` looks.
pub fn not_run(what: &str) -> Result<(), Error> {
    eprintln!("not run: {what}");
    report(&format!("not run: {what}"))
}

/// Says that a test could be run here in part only, and what is left out. `make test` shows it, and counts the test.
///
/// # Errors
/// [`Error::Io`] when it cannot be written to where `make test` looks.
pub fn run_in_part(what: &str) -> Result<(), Error> {
    eprintln!("run in part: {what}");
    report(&format!("run in part: {what}"))
}

/// Adds a line to the file from which `make test` tells what the tests ran on.
pub(super) fn report(line: &str) -> Result<(), Error> {
    let Some(path) = env::var_os("WATCHPOST_TEST_REPORT").map(PathBuf::from) else { return Ok(()) };
    File::options()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
        .map_err(|source| Error::Io { doing: "adding a line to WATCHPOST_TEST_REPORT", path, source })
}
