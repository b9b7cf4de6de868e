use std::fs;
use std::io::{Read as _, Seek as _, Write as _};

use super::super::lines::{AT_A_TIME, MAX_LINE};
use super::*;

/// A file that is followed, by followers that may end at any time.
struct Case {
    directory: tempfile::TempDir,
    tail: Tail,
    /// What was kept last.
    kept: Vec<Place>,
    now: Instant,
    ids: Vec<String>,
}

impl Case {
    fn new(from: From, before: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("f"), before).unwrap();
        let tail = Tail::begin("s", &directory.path().join("f"), from);
        Self { directory, tail, kept: Vec::new(), now: Instant::now(), ids: Vec::new() }
    }

    fn append(&self, text: &str) {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(self.path()).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("f")
    }

    fn other(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Overwrites bytes of the file where they stand.
    fn write_over(&self, text: &str) {
        let mut file = fs::OpenOptions::new().write(true).open(self.path()).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// As `copytruncate` of logrotate does.
    fn copy_and_cut(&self) {
        fs::copy(self.path(), self.other("f.1")).unwrap();
        fs::OpenOptions::new().write(true).open(self.path()).unwrap().set_len(0).unwrap();
    }

    fn rename(&self) {
        fs::rename(self.path(), self.other("f.1")).unwrap();
    }

    /// Another follower goes on where the last one's position was kept.
    fn restart(&mut self) {
        self.tail = Tail::resume("s", &self.path(), From::Start, &self.kept, self.now).unwrap();
    }

    /// Reads until nothing more is found three times in a row: a replaced file takes a look to be noticed and one to be opened.
    fn lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut empty = 0;
        while empty < 3 {
            let found = match self.tail.read(self.now).unwrap() {
                Read::Found(found) => found,
                Read::Began => {
                    empty = 0;
                    self.kept = self.tail.places();
                    continue;
                }
            };
            empty = if found.is_empty() { empty + 1 } else { 0 };
            for found in found {
                lines.push(match found {
                    Found::Line(line) => {
                        self.ids.push(line.id);
                        String::from_utf8(line.bytes.to_vec()).unwrap()
                    }
                    Found::Failure(failure) => format!("{}: {}", failure.stage, failure.message),
                });
            }
            self.kept = self.tail.places();
        }
        lines
    }

    /// Whether no two lines had the same id.
    fn ids_differ(&self) -> bool {
        let mut ids = self.ids.clone();
        ids.sort();
        ids.dedup();
        ids.len() == self.ids.len()
    }
}

#[test]
fn lines_come_when_they_are_complete() {
    let mut case = Case::new(From::Start, "1\n2\n\n3");
    assert_eq!(case.lines(), ["1", "2"]);
    case.append("4\n");
    assert_eq!(case.lines(), ["34"]);
}

#[test]
fn from_the_end_nothing_old_comes_and_no_half_line() {
    let mut case = Case::new(From::End, "1\n2");
    assert_eq!(case.lines(), [""; 0]);
    case.append("2\n3\n");
    assert_eq!(case.lines(), ["3"]);
    let mut case = Case::new(From::End, "1\n");
    assert_eq!(case.lines(), [""; 0]);
    case.append("2\n");
    assert_eq!(case.lines(), ["2"]);
    let mut case = Case::new(From::End, "");
    assert_eq!(case.lines(), [""; 0]);
    case.append("1\n");
    assert_eq!(case.lines(), ["1"]);
}

#[test]
fn a_replaced_file_is_read_to_its_end_and_the_new_one_from_its_beginning() {
    let mut case = Case::new(From::End, "");
    assert_eq!(case.lines(), [""; 0]);
    case.append("1\n2");
    case.rename();
    case.append("3\n");
    assert_eq!(case.lines(), ["1", "3"]);
    case.now += QUIET;
    assert_eq!(case.lines(), ["2"], "nobody will end it any more");
}

#[test]
fn a_file_that_is_gone_for_good_is_a_failure() {
    let mut case = Case::new(From::Start, "1\n");
    assert_eq!(case.lines(), ["1"]);
    fs::remove_file(case.path()).unwrap();
    assert_eq!(case.lines(), [""; 0]);
    case.now += QUIET;
    let failure = case.tail.read(case.now).unwrap_err();
    assert!(failure.stage == "open" && failure.message.contains("No such file"), "{failure:?}");
    case.append("2\n");
    assert_eq!(case.lines(), ["2"]);
}

#[test]
fn what_is_still_written_into_a_renamed_file_is_read() {
    let mut case = Case::new(From::Start, "1\n");
    assert_eq!(case.lines(), ["1"]);
    let mut writer = fs::OpenOptions::new().append(true).open(case.path()).unwrap();
    case.rename();
    assert_eq!(case.lines(), [""; 0], "that there is no file for a moment is no failure");
    writer.write_all(b"2\n3").unwrap();
    assert_eq!(case.lines(), ["2"]);
    case.append("5\n");
    assert_eq!(case.lines(), ["5"]);
    writer.write_all(b"4\n").unwrap();
    assert_eq!(case.lines(), ["34"], "its writer has not opened the new one yet");
}

#[test]
fn a_file_that_became_shorter_is_read_anew() {
    let mut case = Case::new(From::Start, "1\n2\n");
    assert_eq!(case.lines(), ["1", "2"]);
    fs::write(case.path(), "3\n").unwrap();
    assert_eq!(case.lines(), ["3"]);
}

#[test]
fn a_line_that_came_before_the_cut_counts_again_after_it() {
    let mut case = Case::new(From::Start, "header\n1\n2\n");
    assert_eq!(case.lines(), ["header", "1", "2"]);
    case.copy_and_cut();
    case.append("header\n3\n");
    assert_eq!(case.lines(), ["header", "3"]);
    assert!(case.ids_differ(), "{:?}", case.ids);
}

#[test]
fn a_cut_is_noticed_where_the_file_has_grown_beyond_its_old_length_meanwhile() {
    let mut case = Case::new(From::Start, "header\n1\n2\n");
    assert_eq!(case.lines(), ["header", "1", "2"]);
    case.copy_and_cut();
    case.append("header\n3\n4\n5\n6\n");
    assert_eq!(case.lines(), ["header", "3", "4", "5", "6"]);
    assert!(case.ids_differ(), "{:?}", case.ids);
}

#[test]
fn what_was_written_right_before_the_cut_is_read_off_the_copy() {
    for restarted in [false, true] {
        let mut case = Case::new(From::Start, "header\n1\n");
        // A file of an earlier rotation, which begins with the same bytes.
        fs::write(case.other("f.2"), "header\n1\n0\n0\n").unwrap();
        let earlier = fs::File::options().write(true).open(case.other("f.2")).unwrap();
        earlier.set_modified(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(case.lines(), ["header", "1"]);
        case.append("2\n3");
        // Time is as coarse as the kernel's ticks.
        let later = fs::metadata(case.path()).unwrap().modified().unwrap() + Duration::from_secs(1);
        case.copy_and_cut();
        let copy = fs::File::options().write(true).open(case.other("f.1")).unwrap();
        copy.set_modified(later).unwrap();
        case.append("header\n4\n");
        if restarted {
            case.restart();
        }
        assert_eq!(case.lines(), ["2", "header", "4"]);
        case.now += QUIET;
        assert_eq!(case.lines(), ["3"], "nobody will end it any more");
        assert!(case.ids_differ(), "{:?}", case.ids);
    }
}

#[test]
fn a_file_that_is_written_over_in_place_is_read_anew() {
    let mut case = Case::new(From::Start, "1\n2\n3\n");
    assert_eq!(case.lines(), ["1", "2", "3"]);
    case.write_over("1\n5\n3\n");
    assert_eq!(case.lines(), ["1", "5", "3"]);
    assert!(case.ids_differ(), "{:?}", case.ids);
    case.write_over("1\n5\n3\n");
    assert_eq!(case.lines(), [""; 0], "the bytes are the same");
}

#[test]
fn the_end_of_a_line_that_is_written_anew_is_no_new_life() {
    let mut case = Case::new(From::Start, "1\n22222");
    assert_eq!(case.lines(), ["1"]);
    fs::OpenOptions::new().write(true).open(case.path()).unwrap().set_len(2).unwrap();
    case.append("3\n");
    assert_eq!(case.lines(), ["3"]);
}

#[test]
fn a_restart_goes_on_exactly_where_it_was() {
    for from in [From::Start, From::End] {
        let mut case = Case::new(from, "1\n2\n");
        let first = case.lines();
        assert_eq!(first.len(), if from == From::Start { 2 } else { 0 });
        case.append("3\n");
        case.restart();
        case.append("4\n5");
        assert_eq!(case.lines(), ["3", "4"]);
        case.restart();
        case.append("6\n");
        assert_eq!(case.lines(), ["56"]);
        assert!(case.ids_differ(), "{:?}", case.ids);
    }
}

#[test]
fn lines_that_were_read_and_not_kept_come_again_with_the_same_ids() {
    let mut case = Case::new(From::Start, "1\n");
    case.lines();
    let kept = case.kept.clone();
    case.append("2\n3\n");
    assert_eq!(case.lines(), ["2", "3"]);
    let first = case.ids.split_off(1);
    case.kept = kept;
    case.restart();
    assert_eq!(case.lines(), ["2", "3"]);
    assert_eq!(case.ids.split_off(1), first);
}

#[test]
fn a_cut_or_a_rewrite_while_nobody_follows_begins_a_new_life() {
    for cut in [true, false] {
        let mut case = Case::new(From::Start, "1\n2\n");
        assert_eq!(case.lines(), ["1", "2"]);
        if cut {
            case.copy_and_cut();
            case.append("1\n");
        } else {
            case.write_over("1\n3\n");
        }
        case.restart();
        assert_eq!(case.lines(), ["1", "3"].split_at(if cut { 1 } else { 2 }).0);
        assert!(case.ids_differ(), "{:?}", case.ids);
    }
}

#[test]
fn an_inode_that_is_used_again_is_another_file() {
    let mut case = Case::new(From::Start, "1\n2\n");
    assert_eq!(case.lines(), ["1", "2"]);
    fs::remove_file(case.path()).unwrap();
    case.append("1\n3\n4\n");
    // Whatever inode the new one has got: it is taken for the old one's.
    case.kept[0].inode = fs::metadata(case.path()).unwrap().ino();
    case.restart();
    assert_eq!(case.lines(), ["1", "3", "4"]);
    assert!(case.ids_differ(), "{:?}", case.ids);
}

#[test]
fn after_a_rotation_while_nobody_follows_the_rest_of_the_old_file_comes_before_the_new_one() {
    let mut case = Case::new(From::End, "1\n");
    assert_eq!(case.lines(), [""; 0]);
    case.append("2\n");
    assert_eq!(case.lines(), ["2"]);
    case.append("3\n4\n");
    case.rename();
    case.append("2\n");
    case.restart();
    assert_eq!(case.lines(), ["3", "4", "2"]);
    assert!(case.ids_differ(), "{:?}", case.ids);
    let mut old = fs::OpenOptions::new().append(true).open(case.other("f.1")).unwrap();
    old.write_all(b"5\n").unwrap();
    case.restart();
    assert_eq!(case.lines(), ["5"], "both are known");
    case.now += QUIET;
    assert_eq!(case.lines(), [""; 0]);
    assert_eq!(case.kept.len(), 1, "nobody writes into it any more");
}

#[test]
fn a_renamed_file_without_a_new_one_is_read_to_its_end() {
    let mut case = Case::new(From::Start, "1\n");
    assert_eq!(case.lines(), ["1"]);
    case.append("2\n");
    case.rename();
    case.restart();
    assert_eq!(case.lines(), ["2"]);
    case.append("1\n");
    assert_eq!(case.lines(), ["1"]);
    assert!(case.ids_differ(), "{:?}", case.ids);
}

#[test]
fn a_file_that_an_editor_has_saved_goes_on_where_it_has_the_same_bytes() {
    for restarted in [false, true] {
        let mut case = Case::new(From::Start, "1\n2\n");
        assert_eq!(case.lines(), ["1", "2"]);
        let save = |text: &str| {
            fs::write(case.other("new"), text).unwrap();
            fs::rename(case.other("new"), case.path()).unwrap();
        };
        save("1\n2\n3\n");
        if restarted {
            case.restart();
        }
        assert_eq!(case.lines(), ["3"]);
        let save = |text: &str| {
            fs::write(case.other("new"), text).unwrap();
            fs::rename(case.other("new"), case.path()).unwrap();
        };
        save("1\n4\n3\n");
        if restarted {
            case.restart();
        }
        assert_eq!(case.lines(), ["1", "4", "3"]);
        assert!(case.ids_differ(), "{:?}", case.ids);
    }
}

#[test]
fn a_missing_file_is_a_failure_and_read_from_its_beginning_when_it_comes() {
    for from in [From::Start, From::End] {
        let mut case = Case::new(From::Start, "");
        fs::remove_file(case.path()).unwrap();
        case.tail = Tail::begin("s", &case.path(), from);
        assert_eq!(
            case.tail.read(case.now).unwrap(),
            Read::Began,
            "whoever comes next knows that it was not there"
        );
        let failure = case.tail.read(case.now).unwrap_err();
        assert!(failure.stage == "open" && failure.message.contains("No such file"), "{failure:?}");
        case.append("1\n");
        if from == From::End {
            case.restart();
        }
        assert_eq!(case.lines(), ["1"]);
    }
}

#[test]
fn a_line_that_no_message_can_hold_is_left_out_and_said() {
    let mut case = Case::new(From::Start, &format!("1\n{}\n2\n", "x".repeat(MAX_LINE + 1)));
    let lines = case.lines();
    assert_eq!((lines.len(), &*lines[0], &*lines[2]), (3, "1", "2"));
    assert!(lines[1].contains("the line at byte 2 is longer"), "{}", lines[1]);
    case.append(&"y".repeat(MAX_LINE + 70_000));
    assert_eq!(case.lines().len(), 1, "it is said before it ends");
    case.restart();
    case.append(&format!("y\n{}\n", "z".repeat(MAX_LINE)));
    assert_eq!(
        case.lines(),
        ["z".repeat(MAX_LINE)],
        "its rest is not taken for a line after a restart either"
    );
}

#[test]
fn many_lines_come_some_at_a_time() {
    let text: String = (0..3000).map(|n| format!("{n}\n")).collect();
    let mut case = Case::new(From::Start, &text);
    assert_eq!(case.tail.read(case.now).unwrap(), Read::Began);
    let Read::Found(found) = case.tail.read(case.now).unwrap() else { panic!() };
    assert_eq!(found.len(), AT_A_TIME);
    assert_eq!(case.lines().len(), 3000 - AT_A_TIME);
}

#[test]
fn what_is_behind_the_bytes_that_are_compared_is_not_read_again() {
    let line = format!("{}\n", "x".repeat(999));
    let mut case = Case::new(From::Start, &line.repeat(200));
    assert_eq!(case.lines().len(), 200);
    // The last bytes before the position are the same: only they are looked at.
    let mut file = fs::OpenOptions::new().read(true).write(true).open(case.path()).unwrap();
    file.write_all(b"yy").unwrap();
    file.rewind().unwrap();
    let mut first = [0; 2];
    file.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"yy");
    assert_eq!(case.lines(), [""; 0]);
    case.restart();
    case.append("1\n");
    assert_eq!(case.lines(), ["1"]);
}
