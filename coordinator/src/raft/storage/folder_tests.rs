//! The real folder, and the log on it.

use super::{Batch, Disk, Folder, LogId, StorageError, Wal, wal_tests};
use crate::scratch::Scratch;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

#[test]
fn a_log_in_a_folder_is_private_and_comes_back() {
    let scratch = Scratch::new();
    let folder = Folder::open(scratch.path()).unwrap();
    let (mut wal, _) = Wal::open(folder, LogId([3; 16])).unwrap();
    let batch = wal_tests::batch(1, 5, 1, 70);
    wal.append(&batch).unwrap();
    for entry in std::fs::read_dir(scratch.path()).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    drop(wal);
    let folder = Folder::open(scratch.path()).unwrap();
    let (mut wal, recovered) = Wal::open(folder, LogId([4; 16])).unwrap();
    assert_eq!(recovered.entries, batch.entries);
    wal.append(&Batch::default()).unwrap();
}

#[test]
fn a_folder_has_one_user() {
    let scratch = Scratch::new();
    let folder = Folder::open(scratch.path()).unwrap();
    let clone = folder.clone();
    drop(folder);
    let refused = Folder::open(scratch.path()).err().expect("in use");
    assert!(matches!(refused, StorageError::InUse { .. }), "{refused}");
    drop(clone);
    Folder::open(scratch.path()).unwrap();
}

#[test]
fn files_do_what_the_seam_says() {
    let scratch = Scratch::new();
    let mut folder = Folder::open(scratch.path()).unwrap();
    folder.create("b", 3_000_000).unwrap();
    folder.create("a", 0).unwrap();
    assert_eq!(folder.list().unwrap(), ["a", "b"]);
    assert_eq!(folder.len("b").unwrap(), 3_000_000);
    folder.write("a", 10, b"xyz").unwrap();
    folder.sync("a").unwrap();
    folder.rename("a", "b").unwrap();
    assert_eq!(folder.list().unwrap(), ["b"]);
    let mut bytes = [1; 20];
    assert_eq!(folder.read("b", 8, &mut bytes).unwrap(), 5);
    assert_eq!(&bytes[..5], b"\0\0xyz");
    folder.create("b", 2).unwrap();
    assert_eq!(folder.read("b", 0, &mut bytes).unwrap(), 2);
    folder.remove("b").unwrap();
    folder.remove("b").unwrap();
    assert!(folder.len("b").is_err());
    for name in ["", ".", "..", "../b", "a/b"] {
        assert!(folder.create(name, 0).is_err(), "{name}");
    }
}

#[test]
fn a_file_made_ahead_is_taken_once_and_only_for_its_size() {
    let scratch = Scratch::new();
    let mut folder = Folder::open(scratch.path()).unwrap();
    folder.prepare(2_500_000);
    assert!(folder.list().unwrap().is_empty());
    folder.wait_for_spare();
    let inode = |name: &str| std::fs::metadata(scratch.path().join(name)).unwrap().ino();
    let ahead = inode("spare");
    folder.create("other", 10).unwrap();
    assert_ne!(inode("other"), ahead);
    folder.create("next", 2_500_000).unwrap();
    assert_eq!(inode("next"), ahead);
    assert_eq!(folder.len("next").unwrap(), 2_500_000);
    folder.write("next", 5, b"abc").unwrap();
    folder.create("third", 2_500_000).unwrap();
    let mut bytes = [1; 10];
    folder.read("third", 0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 10]);
    // What was made ahead and not used is gone with the folder's next user.
    folder.prepare(2_500_000);
    folder.wait_for_spare();
    drop(folder);
    assert!(scratch.path().join("spare").exists());
    drop(Folder::open(scratch.path()).unwrap());
    assert!(!scratch.path().join("spare").exists());
}

#[test]
fn a_full_log_segment_has_the_next_one_made_ahead() {
    let scratch = Scratch::new();
    let folder = Folder::open(scratch.path()).unwrap();
    let (mut wal, _) = Wal::open(folder, LogId([3; 16])).unwrap();
    let spare = scratch.path().join("spare");
    let mut seen = Vec::new();
    for index in 1.. {
        wal.append(&wal_tests::batch(index, 1, 1, 1 << 20)).unwrap();
        wal.disk().wait_for_spare();
        if wal.disk().list().unwrap().len() == 2 {
            break;
        }
        seen.push(spare.exists());
    }
    assert_eq!((seen.first(), seen.last()), (Some(&false), Some(&true)));
    assert!(!spare.exists(), "it is the second segment");
}
