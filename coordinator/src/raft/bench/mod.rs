//! How fast a group commits, beside what its disk can do: for `cluster bench commits`; `catch_up` is for
//! `cluster bench catch-up`.
//!
//! Three members in this process, each with a thread, a log and a QUIC endpoint of its own, talk over
//! loopback as three processes would. What a command costs is compared in the same run with a bare write
//! and `fdatasync` of as many bytes into a preallocated file in the same folder.

pub mod catch_up;
mod members;

use super::group::Group;
use crate::state::{Command, KeySettings, Proposal, ProposalId, State};
use members::Bench;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What to measure.
pub struct CommitBench {
    /// An empty folder on the disk to be measured.
    pub folder: PathBuf,
    /// 1, 3 or 5.
    pub members: u32,
    /// Clients at once; measured one after the other.
    pub clients: Vec<usize>,
    /// Of each measurement.
    pub duration: Duration,
}

/// Commits of one number of clients.
#[derive(Clone, Debug)]
pub struct CommitSpeed {
    pub clients: usize,
    pub commands_per_second: f64,
    pub p50: Duration,
    pub p99: Duration,
    /// Seconds of processor time per second, of members and clients.
    pub cpus: f64,
}

#[derive(Clone, Debug)]
pub struct CommitReport {
    pub members: u32,
    /// Bytes of one encoded command.
    pub command_bytes: usize,
    /// Bytes of a record with one small command, about.
    pub record_bytes: usize,
    /// A bare write and `fdatasync` of as many, measured in turn with single commits.
    pub sync_p50: Duration,
    pub sync_p99: Duration,
    /// Those single commits.
    pub paired_p50: Duration,
    pub speeds: Vec<CommitSpeed>,
}

/// A record of one small command (a key made for a tenant) with its headers.
const RECORD_BYTES: usize = 256;
const SYNCS: usize = 2_000;

impl CommitBench {
    /// Runs it. `tell` is called with what is being measured.
    ///
    /// # Errors
    /// In words, where the folder or the network of this machine cannot be used.
    pub async fn run(&self, tell: &(dyn Fn(&str) + Sync)) -> Result<CommitReport, String> {
        tell("starting the members");
        let groups = start(&self.folder, self.members).await?;
        let leader = leader(&groups).await?;
        tell("one client and the disk, in turn");
        let paired = in_turn(&groups[leader], &self.folder, self.duration).await?;
        let mut speeds = Vec::new();
        for clients in &self.clients {
            tell(&format!("committing with {clients} clients"));
            speeds.push(commits(&groups[leader], *clients, self.duration).await?);
        }
        for group in &groups {
            group.close().await;
        }
        Ok(CommitReport {
            members: self.members,
            command_bytes: command_bytes()?,
            record_bytes: RECORD_BYTES,
            sync_p50: at(&paired.syncs, 50),
            sync_p99: at(&paired.syncs, 99),
            paired_p50: at(&paired.commits, 50),
            speeds,
        })
    }
}

/// Single commits and bare syncs, one after the other, so that a disk that is slow for a while is slow
/// for both. Sorted.
struct Paired {
    commits: Vec<Duration>,
    syncs: Vec<Duration>,
}

async fn in_turn(group: &Group, folder: &Path, duration: Duration) -> Result<Paired, String> {
    let mut bare = Bare::create(folder).map_err(|e| e.to_string())?;
    let mut paired = Paired {
        commits: Vec::new(),
        syncs: Vec::new(),
    };
    let began = Instant::now();
    let mut n = 0;
    while began.elapsed() < duration && n < SYNCS {
        n += 1;
        let asked = Instant::now();
        group
            .propose(small(u64::MAX, n as u64))
            .await
            .map_err(|e| e.to_string())?;
        paired.commits.push(asked.elapsed());
        let sync = move || bare.sync().map(|taken| (taken, bare));
        let synced = tokio::task::spawn_blocking(sync).await;
        let taken;
        (taken, bare) = synced
            .map_err(|e| e.to_string())?
            .map_err(|e| e.to_string())?;
        paired.syncs.push(taken);
    }
    paired.commits.sort_unstable();
    paired.syncs.sort_unstable();
    Ok(paired)
}

fn command_bytes() -> Result<usize, String> {
    let proposal = Proposal {
        id: ProposalId([1; 16]),
        base: 0,
        at_ms: 0,
        origin: None,
        command: small(0, 0),
    };
    let encoded = crate::state::codec::encode(&proposal);
    encoded.map(|e| e.len()).map_err(|e| e.to_string())
}

/// Processor time of this process so far.
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// A small command that changes the state: a key for a tenant.
fn small(client: u64, n: u64) -> Command {
    let mut key_hash = [0; 32];
    key_hash[..8].copy_from_slice(&client.to_le_bytes());
    key_hash[8..16].copy_from_slice(&n.to_le_bytes());
    Command::CreateKey {
        tenant: "bench".into(),
        key_hash,
        settings: KeySettings::default(),
    }
}

/// A group over loopback, with a log of each member in `folder`.
pub(crate) async fn start(folder: &Path, members: u32) -> Result<Vec<Group>, String> {
    let bench = Bench::bind(folder, members)?;
    let all = (1..=members).map(|id| bench.start(id, Some(&State::default())));
    let groups = all.collect::<Result<Vec<_>, _>>()?;
    bench.bootstrap(&groups[0]).await?;
    Ok(groups)
}

pub(crate) async fn leader(groups: &[Group]) -> Result<usize, String> {
    let mut leadership = groups[0].leadership();
    let known = leadership.wait_for(|l| l.leader.is_some());
    let known = known.await.map_err(|_| "the group ended")?;
    let leader = known.leader;
    groups
        .iter()
        .position(|g| Some(g.own()) == leader)
        .ok_or_else(|| "the leader is none of the members".into())
}

pub(crate) async fn commits(
    group: &Group,
    clients: usize,
    duration: Duration,
) -> Result<CommitSpeed, String> {
    let (began, cpu) = (Instant::now(), cpu_time());
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..clients {
        let group = group.clone();
        tasks.spawn(async move {
            let mut taken = Vec::new();
            let mut n = 0u64;
            while began.elapsed() < duration {
                n += 1;
                let command = small(client as u64, n);
                let asked = Instant::now();
                group.propose(command).await.map_err(|e| e.to_string())?;
                taken.push(asked.elapsed());
            }
            Ok::<_, String>(taken)
        });
    }
    let mut all = Vec::new();
    while let Some(taken) = tasks.join_next().await {
        all.extend(taken.map_err(|e| e.to_string())??);
    }
    let seconds = began.elapsed().as_secs_f64();
    all.sort_unstable();
    Ok(CommitSpeed {
        clients,
        commands_per_second: all.len() as f64 / seconds,
        p50: at(&all, 50),
        p99: at(&all, 99),
        cpus: (cpu_time() - cpu).as_secs_f64() / seconds,
    })
}

/// A preallocated file to write and sync, record by record.
struct Bare {
    file: std::fs::File,
    next: u64,
}

impl Bare {
    fn create(folder: &Path) -> io::Result<Self> {
        let file = std::fs::File::create(folder.join("bare"))?;
        file.write_all_at(&vec![0; RECORD_BYTES * SYNCS], 0)?;
        file.sync_all()?;
        Ok(Self { file, next: 0 })
    }

    fn sync(&mut self) -> io::Result<Duration> {
        let began = Instant::now();
        self.file
            .write_all_at(&[7; RECORD_BYTES], self.next * RECORD_BYTES as u64)?;
        self.file.sync_data()?;
        self.next += 1;
        Ok(began.elapsed())
    }
}

pub(crate) fn at(sorted: &[Duration], percent: usize) -> Duration {
    let index = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(index).copied().unwrap_or_default()
}
