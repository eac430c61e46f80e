//! An exit waits for work on the device that is under way, and for nothing that begins later. In processes of their own:
//! this program, run again.

use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use mamba::exit::{at_work, watch};

/// Runs this program again, as the test `name` with a file that it may leave behind; its exit code.
fn again(name: &str, file: &Path) -> Option<i32> {
    let program = std::env::current_exe().unwrap();
    let child = Command::new(program).args([name, "--exact"]).env("NODE_MAMBA_EXIT_TEST", file).status();
    child.unwrap().code()
}

/// The file, in the process that is to exit.
fn file() -> Option<std::path::PathBuf> {
    std::env::var_os("NODE_MAMBA_EXIT_TEST").map(Into::into)
}

#[test]
fn an_exit_waits_for_work_under_way() {
    let Some(file) = file() else {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("done");
        assert_eq!(again("an_exit_waits_for_work_under_way", &file), Some(7));
        assert!(file.exists(), "the process ended before the work did");
        return;
    };
    watch();
    let (begun, has_begun) = mpsc::channel();
    std::thread::spawn(move || {
        let _work = at_work();
        let _inner = at_work();
        begun.send(()).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        std::fs::write(file, "").unwrap();
    });
    has_begun.recv().unwrap();
    std::process::exit(7);
}

#[test]
fn nothing_begins_while_the_process_exits() {
    let Some(file) = file() else {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("begun");
        let begun = Instant::now();
        assert_eq!(again("nothing_begins_while_the_process_exits", &file), Some(7));
        assert!(begun.elapsed() < Duration::from_secs(4), "it waited for what may not begin");
        assert!(!file.exists(), "work began during the exit");
        return;
    };
    watch();
    let (begun, has_begun) = mpsc::channel();
    let late = begun.clone();
    std::thread::spawn(move || {
        let _work = at_work();
        begun.send(()).unwrap();
        std::thread::sleep(Duration::from_millis(600));
    });
    std::thread::spawn(move || {
        late.send(()).unwrap();
        std::thread::sleep(Duration::from_millis(300)); // the exit waits by then
        let _work = at_work();
        std::fs::write(file, "").unwrap();
    });
    has_begun.recv().unwrap();
    has_begun.recv().unwrap();
    std::process::exit(7);
}
