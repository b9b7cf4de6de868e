//! The data directory, looked at before anything is started.

use std::io;
use std::path::Path;

use rustix::fs::{Access, access};

use super::Failure;

/// Whether stores can be kept there. Changes nothing.
pub(crate) fn check(data: &Path) -> Result<(), Failure> {
    let refuse = |at: &Path, what: &str| {
        Err(Failure::Failed(format!(
            "the data directory {} cannot be used: {} {what}; give another with --data, or let this user write there",
            data.display(),
            at.display()
        )))
    };
    // What is not there yet is made in the nearest directory that is.
    for at in data.ancestors().map(|at| if at.as_os_str().is_empty() { Path::new(".") } else { at }) {
        match at.metadata() {
            Ok(found) if !found.is_dir() => return refuse(at, "is no directory"),
            Ok(_) => match access(at, Access::WRITE_OK | Access::EXEC_OK) {
                Ok(()) => return Ok(()),
                Err(error) => return refuse(at, &format!("cannot be written: {}", io::Error::from(error))),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
            Err(error) => return refuse(at, &format!("cannot be looked at: {error}")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;
    use std::thread;

    use rustix::process::{Uid, geteuid};
    use rustix::thread::set_thread_res_uid;

    use super::*;

    #[test]
    fn a_directory_that_this_user_may_not_write_to_is_named() {
        let parent = tempfile::tempdir().unwrap();
        fs::set_permissions(parent.path(), Permissions::from_mode(0o755)).unwrap();
        let data = parent.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::set_permissions(&data, Permissions::from_mode(0o555)).unwrap();
        let refused = thread::scope(|scope| {
            let looking = scope.spawn(|| {
                if geteuid().is_root() {
                    // Nobody, in this thread alone: root may write anywhere.
                    let nobody = Uid::from_raw(65_534);
                    set_thread_res_uid(nobody, nobody, nobody).unwrap();
                }
                [&data, &data.join("new")].map(|path| check(path).unwrap_err().to_string())
            });
            looking.join().unwrap()
        });
        for refused in refused {
            for word in ["data cannot be written: Permission denied", "--data", "let this user write there"] {
                assert!(refused.contains(word), "{word} is not in: {refused}");
            }
        }
    }

    #[test]
    fn a_directory_is_found_good_or_bad_and_nothing_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        check(directory.path()).unwrap();
        let new = directory.path().join("a/b");
        check(&new).unwrap();
        assert!(!new.parent().unwrap().exists());
        for bad in [&file, &file.join("below")] {
            let refused = check(bad).unwrap_err().to_string();
            assert!(refused.contains("is no directory") && refused.contains("--data"), "{refused}");
        }
    }
}
