use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A small `sh` process that cleans up when its input ends: when this value is dropped, or when this process dies, however
/// it dies. It is in a process group of its own, so that a Ctrl-C for the tests does not end it too.
#[derive(Debug)]
pub(super) struct Keeper {
    shell: Child,
}

impl Keeper {
    /// Removes the container of this name.
    pub(super) fn of_container(name: &str) -> io::Result<Self> {
        Self::start(
            r#"while read -r line; do :; done
            docker rm --force --volumes "$1""#,
            name.as_ref(),
        )
    }

    /// Kills the process last named with [`Keeper::watch`], then runs a command.
    pub(super) fn of_command(command: &[&str]) -> io::Result<Self> {
        Self::start_with(
            r#"while read -r line; do pid=$line; done
            [ -z "$pid" ] || kill -KILL "$pid"
            "$@""#,
            command.iter().map(OsStr::new),
        )
    }

    /// Kills the process last named with [`Keeper::watch`], then removes the directory.
    pub(super) fn of_directory(directory: &Path) -> io::Result<Self> {
        // A process that is being killed may still create a file behind the back of rm.
        Self::start(
            r#"while read -r line; do pid=$line; done
            [ -z "$pid" ] || kill -KILL "$pid"
            for try in 1 2 3 4 5 6 7 8 9 10; do rm -rf "$1" && break; sleep 0.1; done"#,
            directory,
        )
    }

    /// Names the process that must not outlive this one; `None` when it is gone, since its number may be another's soon.
    pub(super) fn watch(&mut self, process: Option<u32>) -> io::Result<()> {
        let Some(input) = &mut self.shell.stdin else { return Ok(()) };
        match process {
            Some(id) => writeln!(input, "{id}"),
            None => writeln!(input),
        }
    }

    fn start(script: &str, what: &Path) -> io::Result<Self> {
        Self::start_with(script, [what.as_os_str()])
    }

    fn start_with<'a>(script: &str, arguments: impl IntoIterator<Item = &'a OsStr>) -> io::Result<Self> {
        let shell = Command::new("sh")
            .args(["-c", script, "keeper"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self { shell })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        if let Err(error) = self.shell.wait() {
            tracing::warn!(%error, "could not wait for the clean-up of a test server");
        }
    }
}
