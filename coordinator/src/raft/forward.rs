//! Proposals of members that do not lead, carried to the one that does.
//!
//! What it keeps true: a proposal keeps its id wherever it goes, so that sending it again is safe;
//! every question has a deadline; a leader answers only for what it applied. A member that knows no
//! leader asks the others who leads.

use super::book::Book;
use super::group::Group;
use super::member::{Answered, MemberStatus, NotProposed};
use super::types::Index;
use crate::state::codec as command;
use crate::state::{Outcome, Proposal};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use trireme_shared::identity::NodeId;
use trireme_shared::ids::CoordinatorId;
use trireme_shared::limits;
use trireme_shared::transport::{Connection, Endpoint, Protocol};
use trireme_shared::wire::codec::{read_frame, write_frame};
use wincode::{SchemaRead, SchemaWrite};

/// One question a stream.
#[derive(SchemaRead, SchemaWrite)]
pub enum Question {
    /// An encoded proposal.
    Propose(Vec<u8>),
    Status,
}

/// To one question.
#[derive(SchemaRead, SchemaWrite)]
pub enum Answer {
    Applied {
        outcome: Outcome,
        index: Index,
    },
    /// It never entered the log. Who leads, as far as is known.
    NotLeader {
        leader: Option<CoordinatorId>,
    },
    /// It may still be applied: ask again.
    InDoubt,
    Status(MemberStatus),
}

/// What forwarding came to.
pub(super) enum Forwarded {
    Answered(Answered),
    Retry,
}

pub(super) struct Forwarder {
    own: CoordinatorId,
    book: Book,
    endpoint: OnceLock<Endpoint>,
    /// One connection for each coordinator; the inner lock is held while it is dialled.
    connections: Mutex<BTreeMap<CoordinatorId, Held>>,
    /// Who was last said to lead by somebody else.
    hint: Mutex<Option<CoordinatorId>>,
}

type Held = Arc<tokio::sync::Mutex<Option<Connection>>>;

impl Forwarder {
    pub(super) fn new(own: CoordinatorId, book: Book) -> Self {
        Self {
            own,
            book,
            endpoint: OnceLock::new(),
            connections: Mutex::default(),
            hint: Mutex::default(),
        }
    }

    pub(super) fn attach(&self, endpoint: &Endpoint) {
        let _ = self.endpoint.set(endpoint.clone());
    }

    /// Asks `leader`, or whoever may lead where nobody is known to. `went` is set once the proposal may
    /// have reached a leader.
    pub(super) async fn propose(
        &self,
        leader: Option<CoordinatorId>,
        proposal: &Proposal,
        went: &mut bool,
    ) -> Forwarded {
        let Ok(bytes) = command::encode(proposal) else {
            return Forwarded::Retry;
        };
        let hint = self.hint().take();
        let mut candidates: Vec<CoordinatorId> = leader.or(hint).into_iter().collect();
        if candidates.is_empty() {
            candidates = self.book.everyone();
        }
        candidates.retain(|id| *id != self.own);
        for candidate in candidates {
            let question = Question::Propose(bytes.clone());
            match self
                .ask(candidate, &question, limits::FORWARD_DEADLINE, went)
                .await
            {
                Ok(Answer::Applied { outcome, index }) => {
                    return Forwarded::Answered(Answered { outcome, index });
                }
                Ok(Answer::NotLeader { leader }) => *self.hint() = leader,
                Ok(Answer::InDoubt) => *went = true,
                Ok(Answer::Status(_)) => {}
                Err(reason) => {
                    tracing::debug!(to = %candidate, reason, "a proposal was not forwarded");
                }
            }
        }
        Forwarded::Retry
    }

    pub(super) async fn status(&self, leader: CoordinatorId) -> Option<MemberStatus> {
        let mut went = false;
        let asked = self.ask(
            leader,
            &Question::Status,
            limits::STATUS_DEADLINE,
            &mut went,
        );
        match asked.await {
            Ok(Answer::Status(status)) => Some(status),
            _ => None,
        }
    }

    fn hint(&self) -> std::sync::MutexGuard<'_, Option<CoordinatorId>> {
        self.hint.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(
        &self,
        of: CoordinatorId,
        question: &Question,
        deadline: std::time::Duration,
        went: &mut bool,
    ) -> Result<Answer, String> {
        let connection = self.connection(of).await?;
        let before = *went;
        let work = async {
            let opened = connection.quic().open_bi().await;
            let (mut send, mut recv) = opened.map_err(|e| e.to_string())?;
            *went = true;
            write_frame(&mut send, question, limits::GROUP_FRAME_BYTES_MAX)
                .await
                .map_err(|e| e.to_string())?;
            let _ = send.finish();
            let answer = read_frame(&mut recv, limits::GROUP_FRAME_BYTES_MAX).await;
            answer
                .map_err(|e| e.to_string())?
                .ok_or_else(|| "it did not answer".to_owned())
        };
        let answer = timeout(deadline, work)
            .await
            .map_err(|_| "no answer in time".to_owned())?;
        if let Ok(Answer::NotLeader { .. } | Answer::Status(_)) = &answer {
            *went = before;
        }
        answer
    }

    async fn connection(&self, to: CoordinatorId) -> Result<Connection, String> {
        let endpoint = self
            .endpoint
            .get()
            .ok_or("this member is not connected yet")?;
        let held = {
            let mut all = self
                .connections
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(to).or_default())
        };
        let mut held = held.lock().await;
        if let Some(connection) = &*held
            && connection.quic().close_reason().is_none()
        {
            return Ok(connection.clone());
        }
        let mut why = "its address is not known yet".to_owned();
        for address in self.book.addresses(u64::from(to.0)) {
            let (node, deadline) = (NodeId::Coordinator(to), limits::RAFT_CONNECT_DEADLINE);
            match endpoint
                .connect_within(&address, node, Protocol::Group, deadline)
                .await
            {
                Ok(connection) => {
                    *held = Some(connection.clone());
                    return Ok(connection);
                }
                Err(error) => why = error.to_string(),
            }
        }
        Err(why)
    }
}

/// Answers the questions of one accepted connection until it ends.
pub(super) async fn serve(group: &Group, connection: &Connection) {
    let places = Arc::new(Semaphore::new(limits::GROUP_STREAMS_MAX as usize));
    while let Ok((mut send, mut recv)) = connection.quic().accept_bi().await {
        // As many as the transport lets a peer open: there is always a place.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let group = group.clone();
        tokio::spawn(async move {
            let _place = place;
            let asked = read_frame::<Question>(&mut recv, limits::GROUP_FRAME_BYTES_MAX);
            let Ok(Ok(Some(question))) = timeout(limits::CONTROL_DEADLINE, asked).await else {
                return;
            };
            let Some(answer) = answer(&group, question).await else {
                return;
            };
            let written = write_frame(&mut send, &answer, limits::GROUP_FRAME_BYTES_MAX).await;
            if written.is_ok() {
                let _ = send.finish();
            }
        });
    }
}

async fn answer(group: &Group, question: Question) -> Option<Answer> {
    match question {
        Question::Status => group.status().map(Answer::Status),
        Question::Propose(bytes) => {
            let proposal = match command::decode(&bytes) {
                Ok(proposal) => proposal,
                Err(error) => {
                    tracing::warn!(%error, "a forwarded proposal cannot be read");
                    return None;
                }
            };
            Some(match group.propose_for_peer(proposal).await {
                Ok(Answered { outcome, index }) => Answer::Applied { outcome, index },
                Err(NotProposed::InDoubt) => Answer::InDoubt,
                Err(NotProposed::NotLeader | NotProposed::Busy) => Answer::NotLeader {
                    leader: group.leadership().borrow().leader,
                },
            })
        }
    }
}
