//! The single-member command log: what Raft's log replaces when the group has more members.
//!
//! What it keeps true: a command is applied after it is on disk, in log order, once; a restart
//! replays the same commands onto the newest snapshot and reaches the same state. One thread owns
//! the database (redb) and the write side of the state; proposals that wait together share one
//! disk sync. redb's file lock keeps a second process out.
//!
//! Neighbours: `state::apply` changes the state; the gateway and the fleet propose and read.

use super::apply::apply;
use super::command::{self, CodecError};
use super::{Command, Outcome, State, UsageId, UsageRecord};
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use tokio::sync::{mpsc, oneshot, watch};
use trireme_shared::ids::CoordinatorId;
use trireme_shared::limits;

/// Log index (from 1) to an encoded command.
const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
/// `0` to the newest snapshot: the index of the last command in it (u64, little-endian), the state.
const SNAPSHOT: TableDefinition<u8, &[u8]> = TableDefinition::new("snapshot");

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("the command log cannot be written: {0}")]
    Storage(String),
    #[error(
        "the command log {path} is in use by another coordinator: stop that one, or choose another --data-dir"
    )]
    InUse { path: PathBuf },
    #[error(
        "the command log {path} cannot be read: {reason}. Restore it from a copy, or start with an empty --data-dir"
    )]
    Unreadable { path: PathBuf, reason: String },
    #[error("the disk did not take the command in time; it may still take effect")]
    Deadline,
    #[error("the coordinator is stopping")]
    Stopped,
}

/// Who leads the group, as far as this member knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// Raft's term; it only grows.
    pub term: u64,
    pub leader: Option<CoordinatorId>,
    /// This member leads, and everything committed before its term is in its state.
    pub is_me: bool,
}

/// Proposes commands and reads the state they made. Cheap to clone.
#[derive(Clone)]
pub struct Journal {
    queue: mpsc::Sender<Job>,
    state: Arc<RwLock<State>>,
    applied: watch::Sender<u64>,
    leadership: watch::Sender<Leadership>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

enum Job {
    Propose(Command, oneshot::Sender<Result<Outcome, JournalError>>),
    Stop,
}

impl Journal {
    /// Opens or creates the log at `path` and replays it. Blocks on the disk: call it before the
    /// runtime serves anyone, or off it.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        Self::open_with(path, limits::JOURNAL_SNAPSHOT_EVERY)
    }

    /// `open` with a snapshot every so many commands.
    fn open_with(path: &Path, snapshot_every: u64) -> Result<Self, JournalError> {
        let (writer, state) = Writer::open(path, snapshot_every)?;
        let state = Arc::new(RwLock::new(state));
        let (queue, jobs) = mpsc::channel(limits::JOURNAL_QUEUE_MAX);
        let shared = Arc::clone(&state);
        let applied = watch::Sender::new(writer.last);
        let leadership = watch::Sender::new(Leadership {
            term: 1,
            leader: Some(CoordinatorId(1)),
            is_me: true,
        });
        let applies = applied.clone();
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || writer.run(jobs, &shared, &applies))
            .map_err(|e| JournalError::Storage(format!("its thread cannot start: {e}")))?;
        Ok(Self {
            queue,
            state,
            applied,
            leadership,
            thread: Arc::new(Mutex::new(Some(thread))),
        })
    }

    /// Makes `command` durable, applies it and gives what came of it (a refusal is an outcome).
    pub async fn propose(&self, command: Command) -> Result<Outcome, JournalError> {
        let (answer, answered) = oneshot::channel();
        let work = async {
            let job = Job::Propose(command, answer);
            self.queue
                .send(job)
                .await
                .map_err(|_| JournalError::Stopped)?;
            answered.await.map_err(|_| JournalError::Stopped)?
        };
        tokio::time::timeout(limits::PROPOSE_DEADLINE, work)
            .await
            .unwrap_or(Err(JournalError::Deadline))
    }

    /// Reads the current state. `f` must be short: it holds the read lock.
    pub fn read<R>(&self, f: impl FnOnce(&State) -> R) -> R {
        f(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The index of the last command in the state; tells of each batch.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Who leads; tells of each change.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    /// Appends usage durably; concurrent calls share one disk sync. Call it once per request: each
    /// call counts.
    pub async fn record_usage(&self, usage: UsageRecord) -> Result<(), JournalError> {
        let mut id = [0u8; 16];
        getrandom::fill(&mut id)
            .map_err(|e| JournalError::Storage(format!("no random numbers: {e}")))?;
        let id = UsageId(id);
        match self.propose(Command::RecordUsage { id, usage }).await? {
            Outcome::Refused(why) => {
                tracing::warn!(%why, "usage was not counted");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Ends when the log can take no more commands: it was closed, or its disk failed.
    pub async fn stopped(&self) {
        self.queue.closed().await;
    }

    /// Finishes what is queued, closes the database and frees its lock.
    pub async fn close(&self) {
        // A send error means that the thread has ended already.
        let _ = self.queue.send(Job::Stop).await;
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            let joined = tokio::task::spawn_blocking(move || thread.join());
            let _ = tokio::time::timeout(limits::PROPOSE_DEADLINE, joined).await;
        }
    }
}

/// The thread's own half.
struct Writer {
    database: Database,
    /// Index of the last command on disk.
    last: u64,
    /// Index of the last command in the snapshot on disk.
    snapshot: u64,
    snapshot_every: u64,
}

impl Writer {
    fn open(path: &Path, snapshot_every: u64) -> Result<(Self, State), JournalError> {
        let unreadable = |reason: String| JournalError::Unreadable {
            path: path.to_owned(),
            reason,
        };
        let database = Database::builder()
            .set_cache_size(limits::JOURNAL_CACHE_BYTES)
            .create(path)
            .map_err(|error| match error {
                DatabaseError::DatabaseAlreadyOpen => JournalError::InUse {
                    path: path.to_owned(),
                },
                other => unreadable(other.to_string()),
            })?;
        create_tables(&database).map_err(|e| unreadable(e.to_string()))?;
        let replayed = replay(&database).map_err(unreadable)?;
        let writer = Self {
            database,
            last: replayed.last,
            snapshot: replayed.snapshot,
            snapshot_every,
        };
        Ok((writer, replayed.state))
    }

    fn run(
        mut self,
        mut jobs: mpsc::Receiver<Job>,
        state: &RwLock<State>,
        applied: &watch::Sender<u64>,
    ) {
        let mut batch = Vec::new();
        let mut open = true;
        while open {
            match jobs.blocking_recv() {
                Some(Job::Propose(command, answer)) => batch.push((command, answer)),
                Some(Job::Stop) | None => break,
            }
            while batch.len() < limits::JOURNAL_BATCH_MAX {
                match jobs.try_recv() {
                    Ok(Job::Propose(command, answer)) => batch.push((command, answer)),
                    Ok(Job::Stop) => {
                        open = false;
                        break;
                    }
                    Err(_) => break,
                }
            }
            if let Err(reason) = self.commit(&mut batch, state) {
                // After a failed sync nobody knows what the disk holds: stop, and let the restart
                // read it.
                tracing::error!(%reason, "the command log failed; the coordinator stops");
                for (_, answer) in batch.drain(..) {
                    let _ = answer.send(Err(JournalError::Storage(reason.clone())));
                }
                return;
            }
            applied.send_replace(self.last);
        }
    }

    fn commit(&mut self, batch: &mut Vec<Proposal>, state: &RwLock<State>) -> Result<(), String> {
        self.append(batch.iter().map(|(command, _)| command))?;
        let mut outcomes = Vec::with_capacity(batch.len());
        {
            let mut state = state.write().unwrap_or_else(PoisonError::into_inner);
            outcomes.extend(batch.iter().map(|(command, _)| apply(&mut state, command)));
        }
        for ((_, answer), outcome) in batch.drain(..).zip(outcomes) {
            // The proposer may have given up waiting; its command counts all the same.
            let _ = answer.send(Ok(outcome));
        }
        if self.last - self.snapshot >= self.snapshot_every {
            let bytes = {
                let state = state.read().unwrap_or_else(PoisonError::into_inner);
                command::encode_state(&state).map_err(|e| format!("a snapshot: {e}"))?
            };
            self.write_snapshot(&bytes).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// One transaction, one sync (redb commits with immediate durability).
    fn append<'a>(&mut self, commands: impl Iterator<Item = &'a Command>) -> Result<(), String> {
        let mut last = self.last;
        let encoded: Result<Vec<_>, CodecError> = commands.map(command::encode).collect();
        let encoded = encoded.map_err(|e| e.to_string())?;
        let mut work = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            {
                let mut log = transaction.open_table(LOG)?;
                for bytes in &encoded {
                    last += 1;
                    log.insert(last, bytes.as_slice())?;
                }
            }
            transaction.commit()?;
            Ok(())
        };
        work().map_err(|e| e.to_string())?;
        self.last = last;
        Ok(())
    }

    /// Replaces the snapshot and drops the commands that are in it, in one transaction.
    fn write_snapshot(&mut self, state: &[u8]) -> Result<(), redb::Error> {
        let mut bytes = self.last.to_le_bytes().to_vec();
        bytes.extend_from_slice(state);
        let transaction = self.database.begin_write()?;
        {
            transaction
                .open_table(SNAPSHOT)?
                .insert(0, bytes.as_slice())?;
            let mut log = transaction.open_table(LOG)?;
            log.retain_in(..=self.last, |_, _| false)?;
        }
        transaction.commit()?;
        self.snapshot = self.last;
        Ok(())
    }
}

type Proposal = (Command, oneshot::Sender<Result<Outcome, JournalError>>);

struct Replayed {
    state: State,
    last: u64,
    snapshot: u64,
}

fn create_tables(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(LOG)?;
    transaction.open_table(SNAPSHOT)?;
    transaction.commit()?;
    Ok(())
}

fn replay(database: &Database) -> Result<Replayed, String> {
    let text = |e: redb::Error| e.to_string();
    let transaction = database.begin_read().map_err(|e| text(e.into()))?;
    let table = transaction
        .open_table(SNAPSHOT)
        .map_err(|e| text(e.into()))?;
    let (mut state, snapshot) = match table.get(0).map_err(|e| text(e.into()))? {
        None => (State::default(), 0),
        Some(bytes) => {
            let bytes = bytes.value();
            let (index, state) = bytes
                .split_first_chunk::<8>()
                .ok_or("its snapshot is shorter than its header")?;
            let state = command::decode_state(state).map_err(|e| format!("its snapshot: {e}"))?;
            (state, u64::from_le_bytes(*index))
        }
    };
    let log = transaction.open_table(LOG).map_err(|e| text(e.into()))?;
    let mut last = snapshot;
    for entry in log.iter().map_err(|e| text(e.into()))? {
        let (index, bytes) = entry.map_err(|e| text(e.into()))?;
        if index.value() != last + 1 {
            return Err(format!("command {} is missing", last + 1));
        }
        last = index.value();
        let command =
            command::decode(bytes.value()).map_err(|e| format!("its command {last}: {e}"))?;
        apply(&mut state, &command);
    }
    Ok(Replayed {
        state,
        last,
        snapshot,
    })
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
