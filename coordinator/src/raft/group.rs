//! The group as the rest of this process uses it: propose a command, read the state, know who leads.
//!
//! What it keeps true: one thread owns the member; an answer is sent only after the state that readers
//! see has its effect; a proposal whose fate is unknown is proposed again under the same id, to
//! whoever leads, until its deadline, and is then told as unknown and never as failed.
//!
//! Neighbours: `member` decides; `peers` carries messages; `forward` carries proposals to the leader;
//! gateway and fleet hold the handle.

use super::book::Book;
use super::forward::{Forwarded, Forwarder};
use super::leisure;
use super::member::{
    Answered, Input, Member, MemberConfig, MemberError, MemberStatus, NotProposed, Output, ReadId,
};
use super::peers::Peers;
use super::snapshots;
use super::storage::{Folder, Recovered, Wal};
use super::types::Index;
use crate::state::{Command, Effect, Origin, Outcome, Proposal, ProposalId, State};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};
use trireme_shared::ids::CoordinatorId;
use trireme_shared::limits;
use trireme_shared::transport::{Connection, Endpoint};
use trireme_shared::wall_clock::unix_ms;

/// Why a command has no outcome.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GroupError {
    /// Safe to ask again in any way: the command never reached a leader.
    #[error(
        "no coordinator leads at the moment: a majority of the group must run and reach each other \
         (`cluster status`). Nothing was changed"
    )]
    NoLeader,
    /// Its effect may be there or may yet come.
    #[error(
        "whether this took effect is unknown: the group did not confirm it in time. Ask again under \
         the same name, and it takes effect once"
    )]
    InDoubt { id: ProposalId },
    #[error("the coordinator is stopping")]
    Stopped,
    #[error("the system gives no random numbers: {0}")]
    Random(String),
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

/// What a proposal says besides its command.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// Chosen by the caller, so that asking again is the same proposal.
    pub id: Option<ProposalId>,
    /// `State::commands` when the id was first used, where that was not now.
    pub base: Option<u64>,
    /// Who asks, for the audit log.
    pub origin: Option<Origin>,
}

/// The handle. Cheap to clone.
#[derive(Clone)]
pub struct Group {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    own: CoordinatorId,
    pub(super) jobs: mpsc::Sender<Job>,
    replica: RwLock<State>,
    applied: watch::Sender<Index>,
    leadership: watch::Sender<Leadership>,
    status: watch::Sender<Option<MemberStatus>>,
    changes: Changes,
    /// Why the member stopped; `None` while it runs or where it was asked to.
    failure: watch::Sender<Option<String>>,
    removed: AtomicBool,
    pub(super) book: Book,
    pub(super) peers: Peers,
    forwarder: Forwarder,
    disk: Folder,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Shared {
    fn removed(&self) {
        tracing::error!("this coordinator was removed from its group");
        self.removed.store(true, Ordering::Relaxed);
        let text = "this coordinator was removed from its group";
        self.failure.send_replace(Some(text.into()));
    }
}

/// One counter for each kind of change, so that a watcher wakes only for its own.
#[derive(Default)]
struct Changes {
    by_kind: BTreeMap<Kind, watch::Sender<u64>>,
}

/// Kinds of change of the state that someone in this process follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Deployments,
    Plans,
    Members,
    Workers,
    Authorities,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::Deployments,
        Self::Plans,
        Self::Members,
        Self::Workers,
        Self::Authorities,
    ];

    fn of(effect: &Effect) -> &'static [Self] {
        match effect {
            Effect::Deployments => &[Self::Deployments],
            Effect::Plans => &[Self::Plans],
            Effect::Members => &[Self::Members],
            Effect::Workers => &[Self::Workers],
            Effect::Authorities => &[Self::Authorities],
            Effect::Removed(_) => &[Self::Members, Self::Workers],
            _ => &[],
        }
    }
}

pub(super) enum Job {
    Input(Input),
    Propose(Proposal, oneshot::Sender<Result<Answered, NotProposed>>),
    Read(oneshot::Sender<()>),
    Stop,
}

impl Group {
    /// Starts the member that `wal` and `recovered` hold. `state` is that of the recovered snapshot.
    /// Must be called within a tokio runtime, which carries the group's connections.
    pub fn start(
        own: CoordinatorId,
        wal: Wal<Folder>,
        recovered: Recovered,
        state: State,
    ) -> Result<Self, MemberError> {
        let mut seed = [0u8; 8];
        // Spreads election timeouts, and tells this start's reads from those of an earlier one.
        let seed = match getrandom::fill(&mut seed) {
            Ok(()) => u64::from_le_bytes(seed),
            Err(_) => unix_ms(),
        };
        let config = MemberConfig {
            id: u64::from(own.0),
            seed,
            snapshot_log_bytes: limits::RAFT_SNAPSHOT_LOG_BYTES,
            keep_log_bytes: limits::RAFT_KEEP_LOG_BYTES,
        };
        let disk = wal.disk().clone();
        let member = Member::new(config, wal, recovered, state)?;
        let (jobs, inbox) = mpsc::channel(limits::RAFT_QUEUE_MAX);
        let changes = Changes {
            by_kind: Kind::ALL.map(|kind| (kind, watch::Sender::new(0))).into(),
        };
        let book = Book::default();
        let shared = Arc::new(Shared {
            own,
            peers: Peers::new(
                own,
                jobs.clone(),
                book.clone(),
                disk.clone(),
                Handle::current(),
            ),
            forwarder: Forwarder::new(own, book.clone()),
            jobs,
            replica: RwLock::new(member.state().clone()),
            applied: watch::Sender::new(member.applied()),
            leadership: watch::Sender::default(),
            status: watch::Sender::default(),
            changes,
            failure: watch::Sender::default(),
            removed: AtomicBool::new(false),
            book,
            disk,
            thread: Mutex::default(),
        });
        shared.book.follow(member.state());
        let thread = std::thread::Builder::new().name("raft".into()).spawn({
            let shared = Arc::downgrade(&shared);
            let runtime = Handle::current();
            move || Thread::run(member, inbox, shared, runtime)
        });
        let thread = thread.map_err(MemberError::Thread)?;
        *lock(&shared.thread) = Some(thread);
        Ok(Self { shared })
    }

    /// From now on peers can be reached. Only the first endpoint counts.
    pub fn attach(&self, endpoint: &Endpoint) {
        self.shared.peers.attach(endpoint);
        self.shared.forwarder.attach(endpoint);
    }

    /// Where this member listens, as others will be told (`host:port`).
    pub fn announce_address(&self, control: &str) {
        self.shared.book.said(u64::from(self.shared.own.0), control);
    }

    /// Coordinators to ask while this member knows none (it has just joined).
    pub fn seeds(&self, seeds: &[trireme_shared::wire::control::CoordinatorAddress]) {
        self.shared.book.seeds(seeds);
    }

    pub fn own(&self) -> CoordinatorId {
        self.shared.own
    }

    /// Has the group apply `command`, once, and gives what came of it (a refusal is an outcome). This
    /// member's state has its effect on return.
    pub async fn propose(&self, command: Command) -> Result<Outcome, GroupError> {
        self.propose_as(Terms::default(), command).await
    }

    pub async fn propose_as(&self, terms: Terms, command: Command) -> Result<Outcome, GroupError> {
        let proposal = Proposal {
            id: match terms.id {
                Some(id) => id,
                None => random_id()?,
            },
            base: terms.base.unwrap_or_else(|| self.read(State::commands)),
            at_ms: unix_ms(),
            origin: terms.origin,
            command,
        };
        let deadline = Instant::now() + limits::PROPOSE_DEADLINE;
        let mut leadership = self.leadership();
        let mut sent = false;
        loop {
            let attempt = self.attempt(&proposal, &mut leadership, &mut sent);
            match timeout_at(deadline, attempt).await {
                Ok(Ok(answered)) => {
                    self.wait_applied(answered.index, deadline).await;
                    return Ok(answered.outcome);
                }
                Ok(Err(Retry::Stopped)) if !sent => return Err(GroupError::Stopped),
                Ok(Err(Retry::Stopped)) | Err(_) if sent => {
                    return Err(GroupError::InDoubt { id: proposal.id });
                }
                Ok(Err(Retry::Stopped)) | Err(_) => return Err(GroupError::NoLeader),
                Ok(Err(Retry::Soon)) => {
                    // Until there is news of a leader, or a moment has passed.
                    let news = timeout(limits::PROPOSE_RETRY_INTERVAL, leadership.changed());
                    let _ = timeout_at(deadline, news).await;
                }
            }
        }
    }

    async fn attempt(
        &self,
        proposal: &Proposal,
        leadership: &mut watch::Receiver<Leadership>,
        sent: &mut bool,
    ) -> Result<Answered, Retry> {
        let leader = leadership.borrow_and_update().leader;
        if leader != Some(self.shared.own) {
            let mut went = false;
            // A leader that died cannot answer; news of another one ends the wait for it.
            let forwarded = tokio::select! {
                forwarded = self.shared.forwarder.propose(leader, proposal, &mut went) => forwarded,
                _ = leadership.changed(), if leader.is_some() => Forwarded::Retry,
            };
            *sent |= went;
            return match forwarded {
                Forwarded::Answered(answered) => Ok(answered),
                Forwarded::Retry => Err(Retry::Soon),
            };
        }
        let answered = self.propose_here(proposal.clone(), sent).await?;
        answered.map_err(|_| Retry::Soon)
    }

    async fn propose_here(
        &self,
        proposal: Proposal,
        sent: &mut bool,
    ) -> Result<Result<Answered, NotProposed>, Retry> {
        let (answer, answered) = oneshot::channel();
        let job = Job::Propose(proposal, answer);
        self.shared
            .jobs
            .send(job)
            .await
            .map_err(|_| Retry::Stopped)?;
        let before = *sent;
        *sent = true;
        let answered = answered.await.map_err(|_| Retry::Stopped)?;
        if matches!(answered, Err(NotProposed::NotLeader | NotProposed::Busy)) {
            *sent = before;
        }
        Ok(answered)
    }

    /// For another member that forwards: proposes here, if this member leads.
    pub(super) async fn propose_for_peer(
        &self,
        proposal: Proposal,
    ) -> Result<Answered, NotProposed> {
        let mut sent = false;
        let here = self.propose_here(proposal, &mut sent);
        match timeout(limits::PROPOSE_DEADLINE, here).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(_)) | Err(_) => Err(NotProposed::InDoubt),
        }
    }

    async fn wait_applied(&self, index: Index, deadline: Instant) {
        let mut applied = self.applied();
        // A replica that lags that far has its own trouble; the outcome is certain all the same.
        let _ = timeout_at(deadline, applied.wait_for(|at| *at >= index)).await;
    }

    /// Waits until this member's state holds everything that was acknowledged anywhere before the
    /// call (Raft's read index).
    pub async fn read_barrier(&self) -> Result<(), GroupError> {
        let deadline = Instant::now() + limits::READ_BARRIER_DEADLINE;
        while Instant::now() < deadline {
            let (ready, read) = oneshot::channel();
            let job = Job::Read(ready);
            self.shared
                .jobs
                .send(job)
                .await
                .map_err(|_| GroupError::Stopped)?;
            // A read is dropped where nobody leads, or its message is lost.
            let attempt = timeout(limits::READ_RETRY_INTERVAL, read);
            match timeout_at(deadline, attempt).await {
                Ok(Ok(Ok(()))) => return Ok(()),
                Ok(Ok(Err(_))) if self.shared.jobs.is_closed() => return Err(GroupError::Stopped),
                Ok(Ok(Err(_)) | Err(_)) => {}
                Err(_) => break,
            }
        }
        Err(GroupError::NoLeader)
    }

    /// Reads this member's state as it is now; `read_barrier` first where others' newest writes matter.
    /// `f` must be short: it holds a read lock.
    pub fn read<R>(&self, f: impl FnOnce(&State) -> R) -> R {
        let replica = self.shared.replica.read();
        f(&replica.unwrap_or_else(PoisonError::into_inner))
    }

    /// The state as it is now, to keep.
    pub fn snapshot(&self) -> State {
        self.read(State::clone)
    }

    /// The newest entry in the state; tells of each batch.
    pub fn applied(&self) -> watch::Receiver<Index> {
        self.shared.applied.subscribe()
    }

    /// Tells of changes of one kind. The number means nothing.
    pub fn changes(&self, kind: Kind) -> watch::Receiver<u64> {
        self.shared.changes.by_kind[&kind].subscribe()
    }

    /// Who leads; tells of each change.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.shared.leadership.subscribe()
    }

    /// This member at a glance, at most `limits::RAFT_TICK` old; `None` before its first step.
    pub fn status(&self) -> Option<MemberStatus> {
        self.shared.status.borrow().clone()
    }

    /// The leader's view of the group, wherever it is.
    pub async fn leader_status(&self) -> Option<MemberStatus> {
        let leader = self.leadership().borrow().leader?;
        if leader == self.shared.own {
            return self.status();
        }
        self.shared.forwarder.status(leader).await
    }

    /// Ends when the member does: it was closed, or it cannot go on (then gives why).
    pub async fn stopped(&self) -> Option<String> {
        self.shared.jobs.closed().await;
        self.shared.failure.borrow().clone()
    }

    /// Whether the member ended because the group counts without it.
    pub fn was_removed(&self) -> bool {
        self.shared.removed.load(Ordering::Relaxed)
    }

    /// Lets another member lead, so that nobody waits for an election when this one stops.
    pub async fn step_down(&self) {
        let mut leadership = self.leadership();
        if !leadership.borrow_and_update().is_me {
            return;
        }
        let _ = self.shared.jobs.send(Job::Input(Input::StepDown)).await;
        let gone = leadership.wait_for(|l| !l.is_me);
        let _ = timeout(limits::STEP_DOWN_DEADLINE, gone).await;
    }

    /// Finishes what is queued and closes the log.
    pub async fn close(&self) {
        self.step_down().await;
        // A send error means that the thread has ended already.
        let _ = self.shared.jobs.send(Job::Stop).await;
        let thread = lock(&self.shared.thread).take();
        if let Some(thread) = thread {
            let joined = tokio::task::spawn_blocking(move || thread.join());
            let _ = timeout(limits::PROPOSE_DEADLINE, joined).await;
        }
    }

    /// Serves one accepted `Protocol::Raft` connection.
    pub async fn serve_raft(&self, connection: &Connection) {
        self.shared.peers.serve(connection).await;
    }

    /// Serves one accepted `Protocol::Group` connection.
    pub async fn serve_group(&self, connection: &Connection) {
        super::forward::serve(self, connection).await;
    }
}

enum Retry {
    /// Nobody took it; it may be tried again.
    Soon,
    Stopped,
}

/// The member's thread.
struct Thread {
    member: Member<Folder>,
    shared: std::sync::Weak<Shared>,
    runtime: Handle,
    answers: BTreeMap<ProposalId, Vec<oneshot::Sender<Result<Answered, NotProposed>>>>,
    reads: BTreeMap<ReadId, Vec<oneshot::Sender<()>>>,
    last_read: u64,
}

impl Thread {
    fn run(
        member: Member<Folder>,
        inbox: mpsc::Receiver<Job>,
        shared: std::sync::Weak<Shared>,
        runtime: Handle,
    ) {
        let thread = Self {
            member,
            shared: shared.clone(),
            runtime,
            answers: BTreeMap::new(),
            reads: BTreeMap::new(),
            last_read: 0,
        };
        let ended = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|e| e.to_string())
            .and_then(|own| {
                own.block_on(thread.serve(inbox)).map_err(|error| {
                    tracing::error!(%error, "the replicated log failed; this coordinator stops");
                    error.to_string()
                })
            });
        if let (Err(reason), Some(shared)) = (ended, shared.upgrade()) {
            shared.failure.send_replace(Some(reason));
        }
    }

    async fn serve(mut self, mut inbox: mpsc::Receiver<Job>) -> Result<(), MemberError> {
        let mut jobs = Vec::new();
        let mut next_tick = Instant::now() + limits::RAFT_TICK;
        let mut open = self.turn(Vec::new(), true)?;
        while open {
            let waited = inbox.recv_many(&mut jobs, limits::RAFT_BATCH_MAX);
            if let Ok(0) = timeout_at(next_tick, waited).await {
                break;
            }
            let now = Instant::now();
            let tick = now >= next_tick;
            if tick {
                // After a pause (a suspended process) one tick is enough: time that nobody measured
                // must not make an election.
                next_tick = now + limits::RAFT_TICK;
            }
            let mut inputs = Vec::new();
            if tick {
                inputs.push(Input::Tick);
            }
            open = self.sort(&mut jobs, &mut inputs);
            open &= self.turn(inputs, false)?;
        }
        Ok(())
    }

    /// Jobs to inputs; false where it is time to stop.
    fn sort(&mut self, jobs: &mut Vec<Job>, inputs: &mut Vec<Input>) -> bool {
        let (mut proposals, mut readers, mut open) = (Vec::new(), Vec::new(), true);
        for job in jobs.drain(..) {
            match job {
                Job::Input(input) => inputs.push(input),
                Job::Propose(proposal, answer) => {
                    let waiting = self.answers.entry(proposal.id).or_default();
                    // The same proposal again, while the first waits: it gets the same answer.
                    if waiting.is_empty() {
                        proposals.push(proposal);
                    }
                    waiting.push(answer);
                }
                Job::Read(ready) => readers.push(ready),
                Job::Stop => open = false,
            }
        }
        if !readers.is_empty() {
            self.last_read += 1;
            let id = ReadId(self.last_read);
            // Whoever gave up has gone; they tried again under a newer name.
            self.reads
                .retain(|_, waiting| waiting.iter().any(|w| !w.is_closed()));
            self.reads.insert(id, readers);
            inputs.push(Input::Read(id));
        }
        if !proposals.is_empty() {
            inputs.push(Input::Propose(proposals));
        }
        open
    }

    /// One step of the member and all that follows from it; false where the member was removed.
    fn turn(&mut self, inputs: Vec<Input>, first: bool) -> Result<bool, MemberError> {
        let Some(shared) = self.shared.upgrade() else {
            return Ok(false);
        };
        let (mut answers, mut reads, mut effects) = (Vec::new(), Vec::new(), Vec::new());
        let (mut installed, mut removed) = (false, false);
        let runtime = &self.runtime;
        let mut out = |output: Output| match output {
            Output::Send(message) => shared.peers.send(message),
            Output::SendSnapshot { message, file } => shared.peers.send_snapshot(message, file),
            Output::Answer(id, answer) => answers.push((id, answer)),
            Output::ReadReady(id) => reads.push(id),
            Output::Effects(new) => effects.extend(new),
            Output::Installed => installed = true,
            Output::WriteSnapshot(meta, state) => {
                let (disk, jobs) = (shared.disk.clone(), shared.jobs.clone());
                let write = move || {
                    let written = snapshots::write(disk, &meta, &state);
                    let written = written.inspect_err(|error| {
                        tracing::error!(%error, "a snapshot was not written");
                    });
                    let _ = jobs.blocking_send(Job::Input(Input::SnapshotWritten(written.ok())));
                };
                if let Err(error) = leisure::run("snapshot", write) {
                    tracing::error!(%error, "a snapshot was not written");
                    let jobs = shared.jobs.clone();
                    runtime.spawn(async move {
                        let _ = jobs.send(Job::Input(Input::SnapshotWritten(None))).await;
                    });
                }
            }
            Output::Removed => removed = true,
        };
        if first {
            self.member.campaign_if_alone(&mut out)?;
        }
        self.member.step(inputs, &mut out)?;
        self.publish(&shared, installed, &effects);
        for id in reads {
            for ready in self.reads.remove(&id).unwrap_or_default() {
                let _ = ready.send(());
            }
        }
        for (id, answer) in answers {
            for waiting in self.answers.remove(&id).unwrap_or_default() {
                // Whoever asked may have given up; the command counts all the same.
                let _ = waiting.send(answer.clone());
            }
        }
        if removed {
            shared.removed();
        }
        Ok(!removed)
    }

    fn publish(&self, shared: &Shared, installed: bool, effects: &[Effect]) {
        let member = &self.member;
        if installed || *shared.applied.borrow() != member.applied() {
            let state = member.state().clone();
            if installed || effects.iter().any(|e| Kind::of(e).contains(&Kind::Members)) {
                shared.book.follow(&state);
            }
            let old = {
                let mut replica = shared
                    .replica
                    .write()
                    .unwrap_or_else(PoisonError::into_inner);
                std::mem::replace(&mut *replica, state)
            };
            // Outside the lock: the last reference to a large table may go here.
            drop(old);
            shared.applied.send_replace(member.applied());
        }
        shared.status.send_replace(Some(member.status()));
        let touched = |kind: &Kind| installed || effects.iter().any(|e| Kind::of(e).contains(kind));
        for (kind, counter) in &shared.changes.by_kind {
            if touched(kind) {
                counter.send_modify(|n| *n = n.wrapping_add(1));
            }
        }
        let office = member.office();
        let leadership = Leadership {
            term: office.term,
            leader: u32::try_from(office.leader)
                .ok()
                .filter(|id| *id != 0)
                .map(CoordinatorId),
            is_me: office.leads,
        };
        shared.leadership.send_if_modified(|old| {
            let changed = *old != leadership;
            if changed {
                tracing::info!(term = leadership.term, leader = ?leadership.leader.map(|l| l.0),
                    leads = leadership.is_me, "leadership");
                *old = leadership;
            }
            changed
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn random_id() -> Result<ProposalId, GroupError> {
    let mut id = ProposalId([0; 16]);
    getrandom::fill(&mut id.0).map_err(|e| GroupError::Random(e.to_string()))?;
    Ok(id)
}
