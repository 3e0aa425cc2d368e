//! Tells the group what happened here, and asks it for more: many items in one report, a few reports
//! under way at once. Keeps a life open and renewed.
//!
//! Keeps true: a report is proposed under one id until its outcome is known, so that nothing is lent or
//! given back twice; what the state refused because the life had ended is told again under the next one,
//! settlements first; asks of an ended life are answered by their waiter asking anew.

use super::{Item, Settlement, Shared};
use crate::raft::group::{GroupError, Terms, random_id};
use crate::state::{Amounts, Answer, Command, Outcome, Refusal, Report, Return, State};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use trireme_shared::ids::GatewayLife;
use trireme_shared::limits;
use trireme_shared::wall_clock::unix_ms;

pub struct Reporter {
    shared: Arc<Shared>,
    items: mpsc::Receiver<Item>,
    /// To be told, the oldest first.
    backlog: VecDeque<Item>,
    life: Life,
    flying: JoinSet<Landed>,
    /// Reports among `flying`.
    reports: usize,
    /// All handles are gone: what is left is told, then the life ends.
    closing: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    None,
    Opening,
    Open(GatewayLife),
}

/// What came of something under way.
enum Landed {
    Opened(Option<GatewayLife>, Instant),
    Reported(Sent, Fate),
}

struct Sent {
    life: GatewayLife,
    at: Instant,
    items: Vec<Item>,
    returns: Vec<Return>,
}

enum Fate {
    /// To the asks among the items, in their order.
    Taken(Vec<Answer>),
    LifeEnded,
    /// This coordinator ends.
    Stopped,
}

impl Reporter {
    pub fn new(shared: Arc<Shared>, items: mpsc::Receiver<Item>) -> Self {
        Self {
            shared,
            items,
            backlog: VecDeque::new(),
            life: Life::None,
            flying: JoinSet::new(),
            reports: 0,
            closing: false,
        }
    }

    pub async fn run(mut self) {
        let mut looks = interval(limits::CHECKPOINT_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut look = false;
            let closing = self.shared.closing.clone();
            tokio::select! {
                () = closing.cancelled(), if !self.closing => {
                    self.closing = true;
                    while let Ok(item) = self.items.try_recv() {
                        self.backlog.push_back(item);
                    }
                }
                item = self.items.recv(), if !self.closing && self.has_room() => {
                    self.closing = item.is_none();
                    self.backlog.extend(item);
                    while self.has_room() && let Ok(item) = self.items.try_recv() {
                        self.backlog.push_back(item);
                    }
                }
                _ = looks.tick() => look = true,
                Some(landed) = self.flying.join_next() => match landed {
                    Ok(landed) => {
                        if !self.land(landed) {
                            return;
                        }
                    }
                    Err(error) => {
                        tracing::error!(%error, "a report to the group broke off");
                        return;
                    }
                },
            }
            self.send(look);
            if self.closing && self.backlog.is_empty() && self.flying.is_empty() {
                return self.close().await;
            }
        }
    }

    fn has_room(&self) -> bool {
        self.backlog.len() < limits::REPORT_ITEMS_MAX
    }

    /// Sends what there is, if it may. At a `look` something is sent in any case: it renews the life.
    fn send(&mut self, mut look: bool) {
        match self.life {
            Life::None if !self.closing || !self.backlog.is_empty() => {
                self.life = Life::Opening;
                self.flying.spawn(open(Arc::clone(&self.shared)));
            }
            Life::None | Life::Opening => {}
            Life::Open(life) => {
                // The newest reports wait in the backlog, and so grow: that is what makes them large.
                while self.reports < limits::REPORTS_IN_FLIGHT && (look || !self.backlog.is_empty())
                {
                    self.report(life, std::mem::take(&mut look));
                }
            }
        }
    }

    fn report(&mut self, life: GatewayLife, look: bool) {
        let many = self.backlog.len().min(limits::REPORT_ITEMS_MAX / 4);
        let items: Vec<Item> = self.backlog.drain(..many).collect();
        let mut report = Report::new(life);
        report.returns = self.returns(&items, look);
        if look {
            report.progress = self.shared.watch().look();
        }
        for item in &items {
            match item {
                Item::Ask { ask, .. } => report.asks.push(*ask),
                Item::Final(settlement) => report.finals.push(settlement.last.clone()),
            }
        }
        let sent = Sent {
            life,
            at: Instant::now(),
            items,
            returns: report.returns.clone(),
        };
        self.reports += 1;
        let shared = Arc::clone(&self.shared);
        self.flying.spawn(async move {
            let fate = tell(&shared, report).await;
            Landed::Reported(sent, fate)
        });
    }

    /// What goes back to the group: at a look whatever is beyond need, and with each settlement what is
    /// scarce.
    fn returns(&self, items: &[Item], look: bool) -> Vec<Return> {
        let mut purse = self.shared.purse();
        let now_ms = unix_ms();
        self.shared.group.read(|state| {
            let left = |subject| state.left(subject, now_ms);
            if look {
                let most = limits::REPORT_ITEMS_MAX / 4;
                return purse.returns(most, |subject, life| state.lease(subject, life), left);
            }
            let mut subjects: Vec<_> = items
                .iter()
                .filter_map(|item| match item {
                    Item::Final(settlement) => settlement.hold.as_ref(),
                    Item::Ask { .. } => None,
                })
                .flat_map(|hold| hold.subjects())
                .collect();
            subjects.sort_unstable();
            subjects.dedup();
            subjects.truncate(limits::REPORT_ITEMS_MAX / 4);
            purse.scarce(subjects.into_iter(), left)
        })
    }

    /// Whether to go on.
    fn land(&mut self, landed: Landed) -> bool {
        match landed {
            Landed::Opened(Some(life), at) => {
                tracing::debug!(%life, "the gateway has a life");
                self.life = Life::Open(life);
                self.shared.purse().begin(life, at + limits::GATEWAY_LEASE);
                self.shared.lives.send_modify(|n| *n += 1);
            }
            Landed::Opened(None, _) => return false,
            Landed::Reported(sent, fate) => {
                self.reports -= 1;
                match fate {
                    Fate::Taken(answers) => self.taken(sent, answers),
                    Fate::LifeEnded => self.ended(sent),
                    Fate::Stopped => return false,
                }
            }
        }
        true
    }

    fn taken(&mut self, sent: Sent, answers: Vec<Answer>) {
        let Sent {
            life,
            at,
            items,
            returns,
        } = sent;
        let charged: Vec<_> = self.shared.group.read(|state| {
            let finals = items.iter().filter_map(|item| match item {
                Item::Final(settlement) => Some(charged(state, settlement)),
                Item::Ask { .. } => None,
            });
            finals.collect()
        });
        let mut purse = self.shared.purse();
        purse.renewed(life, at + limits::GATEWAY_LEASE);
        for back in returns {
            purse.returned(life, back.subject);
        }
        let mut answers = answers.into_iter();
        let mut charged = charged.into_iter();
        for item in items {
            match item {
                Item::Ask { ask, answer } => {
                    let told = answers.next();
                    let granted = match told {
                        Some(Answer::Granted(granted)) => granted,
                        Some(Answer::Denied { .. }) | None => Amounts::default(),
                    };
                    purse.answered(life, ask.subject, granted);
                    if let (Some(answer), Some(told)) = (answer, told) {
                        let _ = answer.send(told);
                    }
                }
                Item::Final(settlement) => {
                    let Settlement {
                        last,
                        hold,
                        charged: answer,
                    } = *settlement;
                    let charged = charged.next().flatten();
                    if let Some(hold) = hold {
                        let used = Amounts {
                            money: charged.unwrap_or_default(),
                            requests: 1,
                            tokens: last.progress.counts.tokens(),
                            slots: 0,
                        };
                        purse.put_back(hold, used);
                    }
                    let _ = answer.send(charged);
                }
            }
        }
    }

    /// Settlements are told under the next life; who asked asks again.
    fn ended(&mut self, sent: Sent) {
        tracing::warn!(life = %sent.life, "the gateway's life was ended by the group: it opens another");
        self.shared.purse().end(sent.life);
        if self.life == Life::Open(sent.life) {
            self.life = Life::None;
        }
        for item in sent.items.into_iter().rev() {
            match item {
                Item::Ask { answer, .. } => drop(answer),
                settled => self.backlog.push_front(settled),
            }
        }
    }

    async fn close(&self) {
        let Life::Open(life) = self.life else {
            return;
        };
        let over = self.shared.group.propose(Command::CloseGateway { life });
        // Else the leader takes the leases back in a while.
        let _ = tokio::time::timeout(limits::USAGE_COMMIT_DEADLINE, over).await;
    }
}

fn charged(state: &State, settlement: &Settlement) -> Option<trireme_shared::ids::NanoUsd> {
    let request = &settlement.last.progress.request;
    state.request_by_id(request).map(|row| row.charged)
}

/// `None` where this coordinator ends.
async fn open(shared: Arc<Shared>) -> Landed {
    loop {
        let at = Instant::now();
        let coordinator = shared.group.own();
        let opened = shared.group.propose(Command::OpenGateway { coordinator });
        match opened.await {
            Ok(Outcome::Gateway(life)) => return Landed::Opened(Some(life), at),
            Ok(other) => tracing::warn!(?other, "the gateway's life was not opened"),
            Err(GroupError::Stopped) => return Landed::Opened(None, at),
            Err(error) => tracing::warn!(%error, "the gateway's life was not opened"),
        }
        sleep(limits::LIFE_RETRY).await;
    }
}

/// Proposes the report until its outcome is known.
async fn tell(shared: &Shared, report: Report) -> Fate {
    let id = match random_id() {
        Ok(id) => id,
        Err(error) => {
            tracing::error!(%error, "a report cannot be named");
            return Fate::Stopped;
        }
    };
    let terms = Terms {
        id: Some(id),
        base: Some(shared.group.read(State::commands)),
        origin: None,
    };
    loop {
        let command = Command::Report {
            report: report.clone(),
        };
        match shared.group.propose_as(terms.clone(), command).await {
            Ok(Outcome::Reported { answers }) => return Fate::Taken(answers),
            // By then its life has ended too, and what is told under the next one counts once: counts
            // are the largest that were told, and what was lent to the old life is gone with it.
            Ok(Outcome::Refused(
                Refusal::GatewayGone(_) | Refusal::TooOld | Refusal::UnknownBase,
            )) => return Fate::LifeEnded,
            Ok(other) => {
                tracing::error!(
                    ?other,
                    "a report was refused: this gateway begins a new life"
                );
                return Fate::LifeEnded;
            }
            Err(GroupError::Stopped) => return Fate::Stopped,
            Err(error) => tracing::warn!(%error, "a report is told again"),
        }
        sleep(limits::LIFE_RETRY).await;
    }
}
