//! A folder for one test, gone with it.

use crate::raft::group::Group;
use crate::raft::member::Member;
use crate::raft::storage::{Folder, LogId, Wal};
use crate::state::State;
use std::path::{Path, PathBuf};
use trireme_shared::ids::CoordinatorId;

pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        let mut name = [0u8; 8];
        getrandom::fill(&mut name).unwrap();
        let path = std::env::temp_dir().join(format!("trireme-{}", hex::encode(name)));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A new group of one with an empty state, whose log is in `folder`; it leads.
pub(crate) async fn group_of_one(folder: &Path) -> Group {
    let log = folder.join("log");
    std::fs::create_dir(&log).unwrap();
    let open = || Wal::open(Folder::open(&log).unwrap(), LogId([1; 16])).unwrap();
    let (mut wal, _) = open();
    Member::found(&mut wal, &[1], &State::default()).unwrap();
    drop(wal);
    let (wal, recovered) = open();
    let group = Group::start(CoordinatorId(1), wal, recovered, State::default()).unwrap();
    let mut leadership = group.leadership();
    leadership.wait_for(|l| l.is_me).await.unwrap();
    group
}
