//! What is refused, what is left when it is cut short, and when there is no room.

use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use nexus_core::event::Data;
use nexus_log::StorageError;
use nexus_log::embedded::admin::{self, AdminError, Existing, Phase, Step};
use nexus_log::embedded::{EmbeddedConfig, open};

use crate::stores::{append, backup, check, healthy, names, on, opened, restore, settings, small, varied};

#[tokio::test]
async fn a_store_that_is_open_of_a_later_release_or_a_copy_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let (data, file) = (directory.path().join("data"), directory.path().join("file"));
    let refused = |what: &str, fits: fn(&AdminError) -> bool| {
        let (backup, check) = (backup(&data, &file).expect_err(what), admin::check(&data, &mut on).expect_err(what));
        assert!(fits(&backup) && fits(&check), "{what}: {backup} / {check}");
        assert_eq!(names(directory.path()).iter().filter(|name| *name != "data").count(), 0, "{what}");
    };
    refused("nothing", |e| matches!(e, AdminError::NoStore { .. }));
    assert!(!data.exists(), "a name that was mistyped makes nothing");
    std::fs::create_dir(&data).expect("a directory");
    refused("an empty directory", |e| matches!(e, AdminError::NoStore { .. }));
    assert_eq!(names(&data), [""; 0]);

    let settings = settings();
    small(&data, &settings).await;
    let handle = opened(&data, &settings).await;
    refused("open", |e| {
        matches!(e, AdminError::Storage(StorageError::Locked { .. })) && e.to_string().contains("stop it")
    });
    handle.close().await.expect("close");

    let format = data.join("FORMAT");
    let write = |text: &str| std::fs::write(&format, text).expect("write");
    write("nexus-log 2\n");
    refused("later", |e| matches!(e, AdminError::Storage(StorageError::Newer { found: 2, known: 1 })));
    write("something\n");
    refused("unknown", |e| matches!(e, AdminError::Storage(StorageError::Damaged(_))));
    write("nexus-copy 1 abc\n");
    refused("a copy", |e| matches!(e, AdminError::Copy { .. }) && e.to_string().contains("cluster"));
    std::fs::remove_file(&format).expect("remove");
    refused("no format", |e| matches!(e, AdminError::Storage(StorageError::Damaged(_))));
    write("nexus-log 1\n");
    backup(&data, &file).expect("backup");
}

#[tokio::test]
async fn the_file_is_for_its_owner_and_replaced_only_when_that_is_said() {
    let directory = tempfile::tempdir().expect("a directory");
    let (data, files) = (directory.path().join("data"), directory.path().join("files"));
    small(&data, &settings()).await;
    std::fs::create_dir(&files).expect("a directory");
    let file = files.join("backup");
    std::fs::write(&file, "mine").expect("write");
    assert!(matches!(backup(&data, &file), Err(AdminError::Exists { .. })));
    assert_eq!(std::fs::read(&file).expect("read"), b"mine");

    // What an attempt left that was killed goes; what another writes now, and what is of another name, stays.
    for name in [".backup.partial-1-0", ".backup.partial-2-0", ".other.partial-1-0"] {
        std::fs::write(files.join(name), "half").expect("write");
    }
    let writes = std::fs::File::open(files.join(".backup.partial-2-0")).expect("open");
    writes.lock().expect("lock");
    admin::backup(&data, &file, Existing::Replace, &mut on).expect("backup");
    assert_eq!(names(&files), [".backup.partial-2-0", ".other.partial-1-0", "backup"]);
    assert_eq!(file.metadata().expect("the file").permissions().mode() & 0o777, 0o600);
    admin::verify(&file, &mut on).expect("verify");
    let folder = backup(&data, Path::new("/")).expect_err("a directory");
    assert!(matches!(&folder, AdminError::Exists { .. }), "{folder}");
}

#[tokio::test]
async fn a_backup_that_is_stopped_leaves_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let (data, file) = (directory.path().join("data"), directory.path().join("file"));
    small(&data, &settings()).await;
    for phase in [Phase::Events, Phase::Artifacts] {
        let mut stop =
            |step: Step| if step.phase == phase { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let stopped = admin::backup(&data, &file, Existing::Keep, &mut stop);
        assert!(matches!(stopped, Err(AdminError::Stopped)), "{stopped:?}");
        assert_eq!(names(directory.path()), ["data"]);
    }
    let stopped = admin::check(&data, &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(AdminError::Stopped)), "{stopped:?}");
}

/// The unit tests try every change of every byte of the format; this tries each byte of a whole file once.
#[tokio::test]
async fn no_store_is_made_of_a_file_that_was_changed_or_cut() {
    let directory = tempfile::tempdir().expect("a directory");
    let (data, file, new) =
        (directory.path().join("data"), directory.path().join("file"), directory.path().join("new"));
    small(&data, &settings()).await;
    backup(&data, &file).expect("backup");
    let whole = std::fs::read(&file).expect("read");
    let changed = directory.path().join("changed");
    let refused = |bytes: &[u8], what: &str| {
        std::fs::write(&changed, bytes).expect("write");
        let found = restore(&changed, &new);
        assert!(matches!(found, Err(AdminError::NotWhole { .. })), "{what}: {found:?}");
        assert!(!new.exists(), "{what}");
    };
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        refused(&bytes, &format!("byte {at}"));
        refused(&whole[..at], &format!("cut at {at}"));
    }
    restore(&file, &new).expect("restore");
    healthy(&new);
}

#[tokio::test]
async fn a_directory_that_holds_anything_is_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let (data, file, new) =
        (directory.path().join("data"), directory.path().join("file"), directory.path().join("new"));
    small(&data, &settings()).await;
    backup(&data, &file).expect("backup");
    for taken in [&data, &directory.path().to_owned()] {
        let before = names(taken);
        assert!(matches!(restore(&file, taken), Err(AdminError::NotEmpty { .. })));
        assert_eq!(names(taken), before);
    }
    healthy(&data);
    // Two at once: the second finds the lock taken.
    let mut second = None;
    let mut watch = |step: Step| {
        if step.phase == Phase::Events && second.is_none() {
            second = Some(restore(&file, &new));
        }
        ControlFlow::Continue(())
    };
    admin::restore(&file, &new, &mut watch).expect("restore");
    assert!(matches!(second, Some(Err(AdminError::Storage(StorageError::Locked { .. })))), "{second:?}");
    healthy(&new);
}

#[tokio::test]
async fn a_restore_that_is_cut_short_leaves_the_place_free() {
    let directory = tempfile::tempdir().expect("a directory");
    let (data, file, new) =
        (directory.path().join("data"), directory.path().join("file"), directory.path().join("new"));
    let settings = settings();
    let handle = opened(&data, &settings).await;
    append(&*handle.storage().log, (0..3_000).map(|n| varied(&settings, n)).collect()).await;
    handle.close().await.expect("close");
    backup(&data, &file).expect("backup");
    let mut stop = |step: Step| {
        let half = step.phase == Phase::Events && step.done > 1_000;
        if half { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let stopped = admin::restore(&file, &new, &mut stop);
    assert!(matches!(stopped, Err(AdminError::Stopped)), "{stopped:?}");
    assert_eq!(names(&new), ["LOCK"]);

    // As a kill leaves it: while it was built, and at each step of the move.
    restore(&file, &new).expect("restore");
    let aside = new.join(".restoring");
    std::fs::create_dir(&aside).expect("a directory");
    for part in ["FORMAT", "artifacts", "db"] {
        std::fs::rename(new.join(part), aside.join(part)).expect("move back");
        assert!(matches!(admin::check(&new, &mut on), Err(AdminError::NoStore { .. } | AdminError::Storage(_))));
        if part != "db" {
            let opened = open(EmbeddedConfig::new(&new)).await.err();
            assert!(matches!(opened, Some(StorageError::Damaged(_))), "{part}: {opened:?}");
        }
        let built = tempfile::tempdir().expect("a directory");
        copy(&new, built.path());
        restore(&file, built.path()).expect("restore over what was left");
        assert_eq!(names(built.path()), ["FORMAT", "LOCK", "artifacts", "db"]);
        assert_eq!(healthy(built.path()).events, 3_000);
    }
    std::fs::remove_file(aside.join("FORMAT")).expect("remove");
    std::fs::remove_dir_all(aside.join("db/keyspaces")).expect("remove");
    restore(&file, &new).expect("restore over what was left");
    assert_eq!(healthy(&new).events, 3_000);
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().expect("cp");
    assert!(status.success());
}

/// A small file system in memory, while it lives.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(mebibytes: usize) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "nexus-log-test"]).arg(directory.path());
        match mount.stdout(Stdio::null()).stderr(Stdio::null()).status() {
            Ok(status) if status.success() => Some(Self(directory)),
            other => {
                eprintln!("left out: a small file system cannot be mounted here ({other:?}); run as root");
                None
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "unmounting the small file system");
    }
}

#[tokio::test]
async fn a_full_disk_is_an_error_that_leaves_nothing() {
    let Some(disk) = Small::mount(24) else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let settings = settings();
    for artifacts in [false, true] {
        let data = directory.path().join(format!("data-{artifacts}"));
        let file = directory.path().join(format!("file-{artifacts}"));
        let handle = opened(&data, &settings).await;
        for n in 0..40 {
            let noise: Vec<u8> = (0..1 << 20).map(|_| rand::random()).collect();
            if artifacts {
                handle.storage().artifacts.put(noise.into()).await.expect("put");
            } else {
                let mut event = varied(&settings, n);
                event.event.data = Some(Data::Binary(noise.into()));
                append(&*handle.storage().log, vec![event]).await;
            }
        }
        handle.close().await.expect("close");
        let place = disk.0.path();
        let full = backup(&data, &place.join("file")).expect_err("there is no room");
        assert!(full.to_string().contains("No space left"), "{full}");
        assert_eq!(names(place), [""; 0]);

        backup(&data, &file).expect("backup");
        // The mount itself is a data directory too.
        let full = restore(&file, place).expect_err("there is no room");
        assert!(matches!(full, AdminError::Io { .. } | AdminError::Storage(StorageError::Failed(_))), "{full}");
        assert_eq!(names(place), ["LOCK"]);
        std::fs::remove_file(place.join("LOCK")).expect("remove");
    }
    let (data, file) = (directory.path().join("data"), directory.path().join("file"));
    small(&data, &settings).await;
    backup(&data, &file).expect("backup");
    restore(&file, disk.0.path()).expect("restore, where there is room");
    assert_eq!(check(disk.0.path()), check(&data));
}
