//! What a member that has nothing costs the group while it is sent a large snapshot: for
//! `cluster bench catch-up`.
//!
//! Commands come at a fixed rate, whatever becomes of those before (an open loop): each one's time
//! counts from when it was due, so that a stall is not measured as one slow command.

use super::members::Bench;
use super::{at, leader, small};
use crate::raft::group::Group;
use crate::state::State;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use trireme_shared::limits;

/// Of a model's name in each row: with it a row takes some 520 bytes in a snapshot, and the rows that a state
/// keeps at most make one as large as a cluster's that has been used for years.
const MODEL_BYTES: usize = 200;

/// What to measure.
pub struct CatchUpBench {
    /// An empty folder on the disk to be measured.
    pub folder: PathBuf,
    /// Where the late member has its log, if on another disk.
    pub late_folder: Option<PathBuf>,
    /// Settled requests in the state.
    pub rows: u64,
    /// Commands a second.
    pub rate: u32,
    /// Of the measurement without the late member; at least as long as it takes it to catch up.
    pub duration: Duration,
}

/// How long commits took, from when they were due.
#[derive(Clone, Debug)]
pub struct CommitTimes {
    pub commits: usize,
    pub p50: Duration,
    pub p99: Duration,
    pub longest: Duration,
}

#[derive(Clone, Debug)]
pub struct CatchUpReport {
    pub snapshot_bytes: u64,
    /// From the late member's start until it has all that was committed.
    pub took: Duration,
    pub before: CommitTimes,
    pub during: CommitTimes,
    pub after: CommitTimes,
}

/// How often the late member is looked at.
const LOOK: Duration = Duration::from_millis(20);

impl CatchUpBench {
    /// Runs it. `tell` is called with what is being done.
    ///
    /// # Errors
    /// In words, where the folder or the network of this machine cannot be used, or the late member does
    /// not catch up in time.
    pub async fn run(&self, tell: &(dyn Fn(&str) + Sync)) -> Result<CatchUpReport, String> {
        tell("making a state");
        let bench = Bench::bind(&self.folder, 3)?;
        let state = State::with_ledger_rows(self.rows, &"m".repeat(MODEL_BYTES));
        let groups = [bench.start(1, Some(&state))?, bench.start(2, Some(&state))?];
        drop(state);
        bench.bootstrap(&groups[0]).await?;
        let led = &groups[leader(&groups).await?];
        let snapshot_bytes = snapshot_bytes(&self.folder.join("member-1"))?;

        tell("committing without the third member");
        let before = self.commits_for(led, 1).await?;
        tell("committing while the third member catches up");
        let over = CancellationToken::new();
        let load = tokio::spawn(load(led.clone(), 2, self.rate, over.clone()));
        let began = Instant::now();
        let late = match &self.late_folder {
            Some(folder) => bench.start_in(&folder.join("member-3"), 3, None)?,
            None => bench.start(3, None)?,
        };
        let caught_up = timeout(limits::SNAPSHOT_DEADLINE, caught_up(led, &late)).await;
        let took = began.elapsed();
        over.cancel();
        let during = times(load.await.map_err(|e| e.to_string())??);
        caught_up.map_err(|_| "the third member did not catch up")?;
        tell("committing with all three members");
        let after = self.commits_for(led, 3).await?;
        for group in groups.iter().chain([&late]) {
            group.close().await;
        }
        Ok(CatchUpReport {
            snapshot_bytes,
            took,
            before,
            during,
            after,
        })
    }

    async fn commits_for(&self, group: &Group, phase: u64) -> Result<CommitTimes, String> {
        let over = CancellationToken::new();
        let load = tokio::spawn(load(group.clone(), phase, self.rate, over.clone()));
        sleep(self.duration).await;
        over.cancel();
        Ok(times(load.await.map_err(|e| e.to_string())??))
    }
}

/// Waits until `late` has applied all that was committed when it was looked at.
async fn caught_up(leader: &Group, late: &Group) {
    loop {
        let committed = leader.status().map(|s| s.commit);
        let applied = late.status().map(|s| s.applied);
        // What was committed since the last message to it is no arrear.
        let near = |(c, a): (u64, u64)| a > 0 && a + limits::RAFT_LEARNER_LAG_MAX >= c;
        if committed.zip(applied).is_some_and(near) {
            return;
        }
        sleep(LOOK).await;
    }
}

/// Commands at a fixed rate until `over`; how long each took from when it was due. Those of one `phase`
/// differ from those of another.
async fn load(
    group: Group,
    phase: u64,
    rate: u32,
    over: CancellationToken,
) -> Result<Vec<Duration>, String> {
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    let mut n = 0u32;
    while !over.is_cancelled() {
        let due = began + Duration::from_secs(1) * n / rate;
        sleep_until(due).await;
        n += 1;
        let group = group.clone();
        let command = small(phase, u64::from(n));
        tasks.spawn(async move {
            let proposed = group.propose(command).await;
            proposed.map(|_| due.elapsed()).map_err(|e| e.to_string())
        });
    }
    let mut taken = Vec::new();
    while let Some(one) = tasks.join_next().await {
        taken.push(one.map_err(|e| e.to_string())??);
    }
    Ok(taken)
}

fn times(mut taken: Vec<Duration>) -> CommitTimes {
    taken.sort_unstable();
    CommitTimes {
        commits: taken.len(),
        p50: at(&taken, 50),
        p99: at(&taken, 99),
        longest: taken.last().copied().unwrap_or_default(),
    }
}

/// Of the newest snapshot file in a member's folder.
fn snapshot_bytes(folder: &std::path::Path) -> Result<u64, String> {
    let mut bytes = 0;
    for file in std::fs::read_dir(folder).map_err(|e| e.to_string())? {
        let file = file.map_err(|e| e.to_string())?;
        if file.file_name().to_string_lossy().ends_with(".snap") {
            bytes = file.metadata().map_err(|e| e.to_string())?.len();
        }
    }
    Ok(bytes)
}
