//! The oracle: what must be true at every step, whatever happens to whom.
//!
//! It keeps the group's one true log, as the first member to apply an entry showed it, and a state of
//! its own that it makes of that log with a healthy `apply`. Every member is held against both.

use crate::billing::Model;
use crate::chance::hash_of;
use crate::workload;
use std::collections::{BTreeMap, BTreeSet};
use trireme_coordinator::planted::{self, Bug};
use trireme_coordinator::raft::codec::{MessageKind, PeerMessage, decode_proposals};
use trireme_coordinator::raft::member::{Answered, Member};
use trireme_coordinator::raft::storage::Disk;
use trireme_coordinator::raft::types::{EntryKind, Index, LogEntry, MemberId, Membership, Term};
use trireme_coordinator::state::{
    AuditHead, Command, Outcome, Posting, Proposal, ProposalId, State, apply,
};
use trireme_shared::ids::Epoch;

/// Faults of the state machine itself.
const IN_ALL_ALIKE: [Bug; 5] = [
    Bug::CountTwiceOnRetry,
    Bug::CheckThenIncrement,
    Bug::LeaseNotReturned,
    Bug::FloatRounding,
    Bug::TellTwice,
];

/// What was not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

pub type Checked = Result<(), Violation>;

pub fn violation<T>(what: impl Into<String>) -> Result<T, Violation> {
    Err(Violation(what.into()))
}

/// An entry of the true log, and the state after it.
struct Entry {
    hash: u64,
    state: State,
    digest: Option<[u8; 32]>,
    /// As the first member that stopped here had it.
    members: Option<Membership>,
}

/// What of a state is compared at every step.
#[derive(Debug, PartialEq, Eq)]
struct Head<'a> {
    commands: u64,
    epoch: Epoch,
    acts: AuditHead,
    posting: Option<&'a Posting>,
}

impl<'a> Head<'a> {
    fn of(state: &'a State) -> Self {
        Self {
            commands: state.commands(),
            epoch: state.last_epoch(),
            acts: state.audit_head(),
            posting: state.postings().next_back(),
        }
    }
}

/// What an acknowledged command was promised.
struct Promise {
    command: Command,
    outcome: Outcome,
}

/// See the module.
pub struct Oracle {
    bug: Option<Bug>,
    /// One in so many indices at which members stop has its states compared in full, byte by byte; at
    /// all of them their heads are: commands, epochs, the ledger's newest line, the chain of acts.
    digest_every: u64,
    /// `log[0]` is the founder's snapshot, index 1.
    log: Vec<Entry>,
    leaders: BTreeMap<Term, MemberId>,
    /// The newest term each member spoke in.
    terms: BTreeMap<MemberId, Term>,
    votes: BTreeMap<(MemberId, Term), MemberId>,
    /// The newest change of the members that each member applied.
    changes: BTreeMap<MemberId, Index>,
    /// The process that first used each name of a read.
    reads: BTreeMap<(MemberId, u64), u64>,
    /// What came of every proposal in the log, and where it was first.
    outcomes: BTreeMap<ProposalId, (Index, Outcome)>,
    promises: BTreeMap<ProposalId, Promise>,
    /// Said never to have reached a log.
    denied: BTreeSet<ProposalId>,
    newest_epoch: Epoch,
    /// What money, leases and requests must be after the log.
    billing: Model,
    /// The newest entry that anybody was told of.
    pub newest: Index,
}

impl Oracle {
    /// The founder's state is the one after entry 1.
    pub fn new(founded: &State, bug: Option<Bug>, digest_every: u64) -> Self {
        let founder = Entry {
            hash: 0,
            state: founded.clone(),
            digest: None,
            members: None,
        };
        Self {
            bug,
            digest_every,
            log: vec![founder],
            leaders: BTreeMap::new(),
            terms: BTreeMap::new(),
            votes: BTreeMap::new(),
            changes: BTreeMap::new(),
            reads: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            promises: BTreeMap::new(),
            denied: BTreeSet::new(),
            newest_epoch: Epoch(0),
            billing: Model::default(),
            newest: 1,
        }
    }

    pub fn last(&self) -> Index {
        self.log.len() as Index
    }

    /// The newest state.
    pub fn state(&self) -> &State {
        &self.log[self.log.len() - 1].state
    }

    fn entry(&mut self, index: Index) -> Option<&mut Entry> {
        self.log
            .get_mut(usize::try_from(index.checked_sub(1)?).ok()?)
    }

    /// After each step of a member, and after its start: `before` is what it had applied then.
    pub fn observe<D: Disk + Clone>(
        &mut self,
        member: &Member<D>,
        before: Index,
        full: bool,
    ) -> Checked {
        let (id, applied) = (member.id(), member.applied());
        if applied < before {
            return violation(format!("member {id} went back from {before} to {applied}"));
        }
        if member.is_elected() {
            let term = member.status().office.term;
            let leader = *self.leaders.entry(term).or_insert(id);
            if leader != id {
                return violation(format!("{leader} and {id} both lead in term {term}"));
            }
        }
        for index in before + 1..=applied {
            // Missing ones came as a snapshot.
            if let Some(entry) = member.entry(index) {
                self.take(id, index, &entry)?;
                if entry.kind == EntryKind::Members {
                    self.changes.insert(id, index);
                }
            }
        }
        if applied > 0 && (applied != before || full) {
            self.compare(member, applied, full)?;
        }
        Ok(())
    }

    fn take(&mut self, member: MemberId, index: Index, entry: &LogEntry) -> Checked {
        let mut hash = hash_of(&entry.data) ^ entry.term.rotate_left(32);
        hash ^= u64::from(entry.kind == EntryKind::Members);
        if let Some(known) = self.entry(index) {
            // The founder's snapshot is nobody's entry.
            if known.hash != hash && index > 1 {
                return violation(format!(
                    "member {member} has another entry {index} (term {}) committed than was before",
                    entry.term
                ));
            }
            return Ok(());
        }
        if index != self.last() + 1 {
            return violation(format!(
                "member {member} applied {index} before {}",
                self.last() + 1
            ));
        }
        let mut state = self.state().clone();
        if entry.kind == EntryKind::Commands {
            let proposals = decode_proposals(&entry.data)
                .map_err(|e| Violation(format!("entry {index} is not readable: {e}")))?;
            // The oracle is not sick itself, unless all members would be in the same way: then they agree
            // with each other, and only the model of billing can tell.
            planted::plant(self.bug.filter(|bug| IN_ALL_ALIKE.contains(bug)));
            for proposal in &proposals {
                let outcome = apply(&mut state, proposal).outcome;
                if let Err(violation) = self.note(index, proposal, outcome) {
                    planted::plant(self.bug);
                    return Err(violation);
                }
            }
            planted::plant(self.bug);
            let agreed = self.billing.agrees(&state);
            agreed.map_err(|what| Violation(format!("billing at entry {index}: {what}")))?;
        }
        self.log.push(Entry {
            hash,
            state,
            digest: None,
            members: None,
        });
        Ok(())
    }

    fn note(&mut self, index: Index, proposal: &Proposal, outcome: Outcome) -> Checked {
        let id = proposal.id;
        if self.denied.contains(&id) {
            return violation(format!(
                "{id:?} was said to have changed nothing, and is in entry {index}"
            ));
        }
        if let Some((first, known)) = self.outcomes.get(&id) {
            if *known != outcome {
                return violation(format!(
                    "{id:?} gave {known:?} in entry {first} and {outcome:?} in entry {index}"
                ));
            }
            return Ok(());
        }
        if let Outcome::Planned(epoch) = outcome {
            if epoch <= self.newest_epoch {
                return violation(format!("epoch {epoch} came after {}", self.newest_epoch));
            }
            self.newest_epoch = epoch;
        }
        let told = self.billing.on(proposal, &outcome);
        told.map_err(|what| Violation(format!("billing at entry {index}: {what}")))?;
        self.outcomes.insert(id, (index, outcome));
        Ok(())
    }

    fn compare<D: Disk + Clone>(
        &mut self,
        member: &Member<D>,
        index: Index,
        full: bool,
    ) -> Checked {
        let (id, digest_every) = (member.id(), self.digest_every);
        let Some(entry) = self.entry(index) else {
            return violation(format!(
                "member {id} has a state of {index}, and nobody applied it"
            ));
        };
        if let Some(members) = &entry.members {
            if members != member.members() {
                return violation(format!(
                    "member {id} knows {:?} at {index}, another {members:?}",
                    member.members()
                ));
            }
        } else {
            entry.members = Some(member.members().clone());
        }
        let (is, should) = (Head::of(member.state()), Head::of(&entry.state));
        if is != should {
            return violation(format!(
                "the state of member {id} at {index} is not what its log says: {is:?} instead of \
                 {should:?}"
            ));
        }
        if !full && !index.is_multiple_of(digest_every) {
            return Ok(());
        }
        let digest_of = |state: &State| {
            state
                .digest()
                .map_err(|e| Violation(format!("a state has no digest: {e}")))
        };
        let digest = match entry.digest {
            Some(digest) => digest,
            None => *entry.digest.insert(digest_of(&entry.state)?),
        };
        if digest_of(member.state())? != digest {
            return violation(format!(
                "the state of member {id} at {index} is not what its log says"
            ));
        }
        Ok(())
    }

    /// A member that started again still knows who the members are: it may have told those that left,
    /// and can have no more votes of theirs.
    pub fn started<D: Disk + Clone>(&mut self, member: &Member<D>) -> Checked {
        let (id, commit) = (member.id(), member.status().commit);
        let change = self.changes.get(&id).copied().unwrap_or_default();
        if commit < change {
            return violation(format!(
                "member {id} forgot that the members changed at {change}: it knows of {commit}"
            ));
        }
        self.observe(member, member.applied(), true)
    }

    /// Every message that a process of a member sends.
    pub fn said(&mut self, message: &PeerMessage, life: u64) -> Checked {
        use MessageKind as K;
        let (from, term) = (message.from, message.term);
        match message.kind {
            K::ReadIndex => {
                let name = message.entries.first().map_or(0, |e| hash_of(&e.data));
                let first = *self.reads.entry((from, name)).or_insert(life);
                if first != life {
                    return violation(format!(
                        "member {from} names a read as it did in life {first}, now is {life}"
                    ));
                }
                return Ok(());
            }
            // They name a term that is only asked about, or none.
            K::RequestPreVote | K::RequestPreVoteResponse | K::ReadIndexResponse => {
                return Ok(());
            }
            _ => {}
        }
        let newest = self.terms.entry(from).or_default();
        if term < *newest {
            return violation(format!(
                "member {from} forgot term {newest}: it speaks in {term}"
            ));
        }
        *newest = term;
        let vote = match message.kind {
            K::RequestVoteResponse if !message.reject => message.to,
            K::RequestVote => from,
            _ => return Ok(()),
        };
        let given = *self.votes.entry((from, term)).or_insert(vote);
        if given != vote {
            return violation(format!(
                "member {from} voted in term {term} for {given}, and then for {vote}"
            ));
        }
        Ok(())
    }

    /// A client was told so.
    pub fn acknowledged(&mut self, proposal: &Proposal, answered: &Answered) -> Checked {
        let (id, command) = (proposal.id, &proposal.command);
        let name = workload::name(command);
        let Answered { outcome, index } = answered;
        if !workload::fits(command, outcome) {
            return violation(format!("{name} {id:?} was answered {outcome:?}"));
        }
        match self.outcomes.get(&id) {
            None => {
                return violation(format!("{name} {id:?} was acknowledged, and is in no log"));
            }
            Some((first, known)) if known != outcome || first > index => {
                return violation(format!(
                    "{name} {id:?} was answered {outcome:?} at {index}, and gave {known:?} at {first}"
                ));
            }
            Some(_) => {}
        }
        self.newest = self.newest.max(*index);
        let promise = Promise {
            command: command.clone(),
            outcome: outcome.clone(),
        };
        self.promises.insert(id, promise);
        Ok(())
    }

    /// A client was told that nothing was changed.
    pub fn denied(&mut self, id: ProposalId) -> Checked {
        if let Some((index, _)) = self.outcomes.get(&id) {
            return violation(format!(
                "{id:?} was said to have changed nothing, and is in entry {index}"
            ));
        }
        self.denied.insert(id);
        Ok(())
    }

    /// A linearizable read that began when everything up to `floor` was acknowledged.
    pub fn read<D: Disk + Clone>(&self, member: &Member<D>, floor: Index) -> Checked {
        if member.applied() < floor {
            return violation(format!(
                "a read at member {} saw entry {}, and {floor} was acknowledged before it began",
                member.id(),
                member.applied()
            ));
        }
        Ok(())
    }

    /// The state in the end, against what clients were promised. Without a look at `apply`.
    pub fn settle(&self, state: &State) -> Checked {
        state.check().map_err(Violation)?;
        for (id, promise) in &self.promises {
            let kept = match (&promise.command, &promise.outcome) {
                (
                    Command::CreateKey {
                        tenant: asked,
                        key_hash,
                        ..
                    },
                    Outcome::Key { tenant, key },
                ) => {
                    let known = state.key_of(key_hash);
                    let named = state.tenant(*tenant).is_some_and(|t| t.name == *asked);
                    named && known.is_some_and(|k| (k.id, k.tenant) == (*key, *tenant))
                }
                (Command::CreateToken { secret_hash, .. }, Outcome::Token(token)) => state
                    .token(*token)
                    .is_some_and(|t| t.secret_hash == *secret_hash),
                _ => true,
            };
            if !kept {
                let name = workload::name(&promise.command);
                return violation(format!("{name} {id:?} was acknowledged, and is lost"));
            }
        }
        self.billing.agrees(state).map_err(Violation)
    }
}
