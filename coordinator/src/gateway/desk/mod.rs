//! Where requests are let in and paid for: this gateway's life in the state, what it was lent, and the
//! reports by which its requests are settled.
//!
//! `needs` (pure) says what a request must hold, `purse` (pure) what there is to hold, `live` what runs;
//! `reporter` tells the group and asks it. Keeps true: nobody is let in without a hold for all that the
//! request may cost, out of what the group lent to this gateway's life; the usual request waits for
//! nobody; a settlement is told again until the group has it.
//!
//! Neighbours: `openai` lets requests in, `usage` counts and settles them, `state` keeps the books.

pub mod bench;
mod live;
mod needs;
mod purse;
mod reporter;

pub use live::{About, Live};
pub use needs::Wish;

use super::error::ApiError;
use super::usage::Payer;
use crate::raft::group::Group;
use crate::state::{Amounts, Answer, Ask, Final, Rates, Shortage, Subject};
use live::Watch;
use needs::{Denied, Needs, needs};
use purse::{Hold, Lacking, Purse};
use reporter::Reporter;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;
use trireme_shared::ids::NanoUsd;
use trireme_shared::limits;
use trireme_shared::wall_clock::unix_ms;

/// Something that the group is to be told.
enum Item {
    Ask {
        ask: Ask,
        /// Nobody waits for what was asked for beforehand.
        answer: Option<oneshot::Sender<Answer>>,
    },
    Final(Box<Settlement>),
}

/// The end of a request.
struct Settlement {
    last: Final,
    hold: Option<Hold>,
    /// What was charged for it in all; `None` where the state knows nothing of it.
    charged: oneshot::Sender<Option<NanoUsd>>,
}

/// What the desk and its reporter share.
struct Shared {
    group: Group,
    purse: Mutex<Purse>,
    watch: Mutex<Watch>,
    /// Counts the lives that began.
    lives: watch::Sender<u64>,
    /// What is queued is told, then the life ends.
    closing: CancellationToken,
}

impl Shared {
    fn purse(&self) -> MutexGuard<'_, Purse> {
        self.purse.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The handle. Cheap to clone.
#[derive(Clone)]
pub struct Desk {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Item>,
    closed: watch::Receiver<bool>,
}

/// A request's hold. What is dropped unsettled is free again.
pub struct Held {
    desk: Desk,
    hold: Option<Hold>,
    /// No choice may be longer than this, where there was not enough for all that was wished.
    pub shortened: Option<u32>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(hold) = self.hold.take() {
            self.desk.shared.purse().put_back(hold, Amounts::default());
        }
    }
}

impl Desk {
    /// Must be called within a tokio runtime.
    pub fn start(group: Group) -> Self {
        let (queue, items) = mpsc::channel(limits::REPORT_QUEUE_MAX);
        let shared = Arc::new(Shared {
            group,
            purse: Mutex::default(),
            watch: Mutex::default(),
            lives: watch::Sender::default(),
            closing: CancellationToken::new(),
        });
        let (over, closed) = watch::channel(false);
        let reporter = Reporter::new(Arc::clone(&shared), items);
        tokio::spawn(async move {
            reporter.run().await;
            over.send_replace(true);
        });
        Self {
            shared,
            queue,
            closed,
        }
    }

    /// Ends the life, so that its leases need not wait for a reaper. For when no request runs any more.
    pub async fn close(&self) {
        self.shared.closing.cancel();
        let mut closed = self.closed.clone();
        let over = closed.wait_for(|over| *over);
        let _ = tokio::time::timeout(limits::USAGE_COMMIT_DEADLINE, over).await;
    }

    /// Holds what the wish may cost.
    pub async fn admit(&self, payer: &Payer, wish: &Wish) -> Result<Held, ApiError> {
        let deadline = tokio::time::Instant::now() + limits::ADMISSION_DEADLINE;
        let mut lives = self.shared.lives.subscribe();
        loop {
            lives.mark_unchanged();
            let waiting = match self.try_hold(payer, wish)? {
                Tried::Held(held) => return Ok(held),
                Tried::NoLife => Vec::new(),
                Tried::Asked(answers) => answers,
            };
            if waiting.is_empty() {
                match timeout_at(deadline, lives.changed()).await {
                    Ok(Ok(())) => continue,
                    Ok(Err(_)) | Err(_) => return Err(not_in_time()),
                }
            }
            for (subject, answer) in waiting {
                match timeout_at(deadline, answer).await {
                    Ok(Ok(Answer::Granted(_))) => {}
                    Ok(Ok(Answer::Denied {
                        why,
                        retry_after_ms,
                    })) => {
                        let denied = Denied {
                            subject,
                            why,
                            retry_after_ms,
                        };
                        return Err(refusal(denied));
                    }
                    // Its life ended: the next one is asked.
                    Ok(Err(_)) => {}
                    Err(_) => return Err(not_in_time()),
                }
            }
        }
    }

    fn try_hold(&self, payer: &Payer, wish: &Wish) -> Result<Tried, ApiError> {
        let mut purse = self.shared.purse();
        let now = Instant::now();
        let free = |subject| purse.free(subject, now);
        let found = self
            .shared
            .group
            .read(|state| needs(state, payer, wish, free, unix_ms()));
        let Needs { needs, shortened } = found.map_err(refusal)?;
        match purse.hold(&needs, now) {
            Ok(hold) => {
                for ask in purse.ask_ahead(&needs) {
                    self.ask(&mut purse, ask, None);
                }
                drop(purse);
                Ok(Tried::Held(Held {
                    desk: self.clone(),
                    hold: Some(hold),
                    shortened,
                }))
            }
            Err(Lacking::Life) => Ok(Tried::NoLife),
            Err(Lacking::Lease(asks)) => {
                let mut answers = Vec::with_capacity(asks.len());
                for ask in asks {
                    let (answer, answered) = oneshot::channel();
                    if !self.ask(&mut purse, ask, Some(answer)) {
                        return Err(ApiError::unavailable(
                            "overloaded",
                            "Too many requests wait to be admitted here.",
                            1,
                        ));
                    }
                    answers.push((ask.subject, answered));
                }
                Ok(Tried::Asked(answers))
            }
        }
    }

    /// Whether there was room for it.
    fn ask(&self, purse: &mut Purse, ask: Ask, answer: Option<oneshot::Sender<Answer>>) -> bool {
        let subject = ask.subject;
        let sent = self.queue.try_send(Item::Ask { ask, answer });
        if sent.is_err() {
            purse.unasked(subject);
        }
        sent.is_ok()
    }

    /// From now on what it streams is told of while it runs.
    pub fn watch(&self, live: &Arc<Live>) {
        self.shared.watch().add(live);
    }

    /// Has a request settled, and gives what was charged for it. It is told until the group has it, even
    /// if nobody waits for this.
    pub async fn settle(&self, last: Final, mut held: Option<Held>) -> Option<NanoUsd> {
        let (charged, told) = oneshot::channel();
        let settlement = Settlement {
            last,
            hold: held.as_mut().and_then(|held| held.hold.take()),
            charged,
        };
        // Bounded by the requests there are; it waits only while the group has no leader.
        self.queue
            .send(Item::Final(Box::new(settlement)))
            .await
            .ok()?;
        told.await.ok().flatten()
    }

    /// The tighter of what the tenant's and the key's limits leave, beside what other gateways were lent.
    pub fn rates(&self, payer: &Payer) -> Rates {
        let now_ms = unix_ms();
        let (tenant, key) = self.shared.group.read(|state| {
            let line = state.key(payer.key).map(|key| Subject::Key(key.line));
            let tenant = Subject::Tenant(payer.tenant);
            let key = line.map(|line| (line, state.rates(line, now_ms)));
            ((tenant, state.rates(tenant, now_ms)), key)
        });
        let purse = self.shared.purse();
        let now = Instant::now();
        let mut tightest = Rates::default();
        for (subject, mut rates) in std::iter::once(tenant).chain(key) {
            let free = purse.free(subject, now);
            for (rate, free, tight) in [
                (&mut rates.requests, free.requests, &mut tightest.requests),
                (&mut rates.tokens, free.tokens.0, &mut tightest.tokens),
            ] {
                let Some(rate) = rate else { continue };
                rate.left = rate.left.saturating_add(free).min(rate.limit);
                if tight.is_none_or(|tight| rate.left < tight.left) {
                    *tight = Some(*rate);
                }
            }
        }
        tightest
    }
}

enum Tried {
    Held(Held),
    NoLife,
    Asked(Vec<(Subject, oneshot::Receiver<Answer>)>),
}

fn not_in_time() -> ApiError {
    ApiError::unavailable(
        "no_leader",
        "No coordinator leads at the moment, so that nothing can be charged: try again soon.",
        1,
    )
}

/// How a shortage is told, as OpenAI's SDKs expect it.
fn refusal(denied: Denied) -> ApiError {
    let whose = match denied.subject {
        Subject::Tenant(_) => "account",
        Subject::Key(_) => "API key",
    };
    let wait = denied.retry_after_ms;
    match denied.why {
        Shortage::Closed => {
            ApiError::forbidden("This account is suspended: ask whoever runs this cluster.")
        }
        Shortage::Funds => ApiError::quota(
            "This account's balance and credit do not cover what this request may cost: lower \
             'max_tokens', or have it topped up.",
            wait,
        ),
        Shortage::MonthlyBudget => ApiError::quota(
            format!(
                "What is left of this {whose}'s monthly budget does not cover what this request may \
                 cost: lower 'max_tokens', or have the budget raised."
            ),
            wait,
        ),
        Shortage::RequestsPerMinute => ApiError::rate_limited(
            "requests",
            format!("This {whose}'s limit on requests a minute is reached."),
            wait,
        ),
        Shortage::TokensPerMinute => ApiError::rate_limited(
            "tokens",
            format!(
                "This {whose}'s limit on tokens a minute does not leave what this request may use: \
                 lower 'max_tokens', or wait."
            ),
            wait,
        ),
        Shortage::TokensPerDay => ApiError::rate_limited(
            "tokens",
            format!(
                "This {whose}'s limit on tokens a day does not leave what this request may use: lower \
                 'max_tokens', or wait for the next day (UTC)."
            ),
            wait,
        ),
        Shortage::Concurrency => ApiError::rate_limited(
            "requests",
            format!("This {whose} has as many requests running at once as it may."),
            Some(wait.unwrap_or(limits::CONCURRENCY_RETRY.as_millis() as u64)),
        ),
    }
}
