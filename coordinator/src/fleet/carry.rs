//! Carries sequences: chooses a replica, streams from its driver, and goes on elsewhere when that
//! one fails.
//!
//! What it keeps true: the client sees contiguous tokens whatever fails (`progress` sees to that);
//! a client that goes away frees its sequence at once; every wait ends; a tenant that floods leaves
//! others room (`places`), among the sequences that are carried and among the streams of each driver:
//! neither bound may be used up by one tenant, and what is refused here costs no driver anything.

use super::Fleet;
use super::dispatch::{Dispatch, DispatchError};
use super::drivers::Load;
use super::progress::{Progress, Step};
use super::reconcile::{Event, ReplicaKey, Route};
use super::work::{Tally, TokenUnits};
use crate::state::State;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use trireme_shared::ids::{Epoch, RequestId, TenantId};
use trireme_shared::limits;
use trireme_shared::wire::codec::{FrameReader, write_frame};
use trireme_shared::wire::generate::{GenerateEvent, GenerateRequest, Priority, Sampling};

type Events = mpsc::Sender<Result<GenerateEvent, DispatchError>>;

/// Code of the stream reset that cancels a sequence.
const CANCELLED: u32 = 1;

/// How often a stream that brings tokens says so to the reconciler.
const TOKENS_SEEN_INTERVAL: Duration = Duration::from_secs(1);

/// Takes sequences from the gateway's queue, each into a task of its own.
pub(super) async fn serve(fleet: Fleet, mut queue: mpsc::Receiver<Dispatch>) {
    while let Some(dispatch) = queue.recv().await {
        let sequence = &dispatch.sequence;
        let place = fleet
            .shared
            .places
            .try_take(sequence.tenant, sequence.weight);
        let permit = fleet.shared.carrying.clone().try_acquire_owned();
        match place.zip(permit.ok()) {
            Some(held) => {
                let fleet = fleet.clone();
                tokio::spawn(async move {
                    let _held = held;
                    carry(&fleet, dispatch).await;
                });
            }
            None => {
                let _ = dispatch.events.try_send(Err(DispatchError::Overloaded));
            }
        }
    }
}

async fn carry(fleet: &Fleet, dispatch: Dispatch) {
    let Dispatch { sequence, events } = dispatch;
    let mut journey = Journey {
        fleet,
        events: &events,
        progress: Progress::new(sequence),
        left: limits::REPLICA_WAIT_MAX,
        full: BTreeSet::new(),
        avoid: None,
        why: None,
    };
    // Cancels whatever is awaited when the client goes: dropping an exchange resets its stream.
    let outcome = tokio::select! {
        () = events.closed() => return,
        outcome = journey.run() => outcome,
    };
    if let Err(error) = outcome {
        let _ = timeout(limits::STREAM_STALL_MAX, events.send(Err(error))).await;
    }
}

/// One sequence on its way through replicas.
struct Journey<'a> {
    fleet: &'a Fleet,
    events: &'a Events,
    progress: Progress,
    /// Time left to wait for replicas; refilled whenever one brought the sequence further.
    left: Duration,
    /// Replicas whose waiting room was full.
    full: BTreeSet<(ReplicaKey, Epoch)>,
    /// The replica that failed last: taken again only if there is no other.
    avoid: Option<(ReplicaKey, Epoch)>,
    /// Why the last replica failed.
    why: Option<String>,
}

/// How one attempt on one replica ended.
enum Attempt {
    Finished,
    Overloaded,
    Invalid(String),
    Lost(String),
    /// The client stopped reading.
    Stalled,
}

/// A driver took the sequence.
struct Accepted {
    at: Instant,
    /// It brought the client something new.
    advanced: bool,
}

impl Journey<'_> {
    async fn run(&mut self) -> Result<(), DispatchError> {
        loop {
            let began = Instant::now();
            let route = match timeout_at(began + self.left, self.pick()).await {
                Ok(route) => route?,
                Err(_) => return Err(self.gave_up()),
            };
            let mut accepted = None;
            let attempt = self.attempt(&route, &mut accepted).await;
            self.left = match accepted {
                Some(Accepted { advanced: true, .. }) => limits::REPLICA_WAIT_MAX,
                // Time in a driver's waiting room is not time without a replica.
                Some(Accepted { at, .. }) => self.left.saturating_sub(at - began),
                None => self.left.saturating_sub(began.elapsed()),
            };
            match attempt {
                Attempt::Finished | Attempt::Stalled => return Ok(()),
                Attempt::Invalid(reason) => return Err(DispatchError::Invalid(reason)),
                Attempt::Overloaded if !self.progress.is_under_way() => {
                    self.full.insert((route.key, route.epoch));
                    continue;
                }
                Attempt::Overloaded => self.why = Some("its waiting room is full".into()),
                Attempt::Lost(reason) => {
                    tracing::info!(request = %self.progress.sequence().request,
                        replica = %route.key.1, epoch = %route.epoch, reason,
                        "a replica failed in mid-sequence; going on elsewhere");
                    self.why = Some(reason);
                }
            }
            if let Some(last) = self.progress.finished() {
                self.forward(last).await;
                return Ok(());
            }
            self.avoid = Some((route.key, route.epoch));
            let pause = limits::DISPATCH_RETRY_INTERVAL.min(self.left);
            if pause.is_zero() {
                return Err(self.gave_up());
            }
            sleep(pause).await;
            self.left = self.left.saturating_sub(pause);
        }
    }

    fn gave_up(&self) -> DispatchError {
        match &self.why {
            Some(reason) => DispatchError::Lost(reason.clone()),
            None => DispatchError::NotReady,
        }
    }

    /// The ready replica with the fewest sequences; waits for one to become ready.
    async fn pick(&self) -> Result<Route, DispatchError> {
        let mut routes = self.fleet.shared.routes.subscribe();
        loop {
            let choice = self.choose(&routes.borrow_and_update());
            if let Some(choice) = choice {
                return choice;
            }
            if routes.changed().await.is_err() {
                return Err(DispatchError::NotReady);
            }
        }
    }

    fn choose(&self, routes: &[Route]) -> Option<Result<Route, DispatchError>> {
        let sequence = self.progress.sequence();
        let ready: Vec<&Route> = routes
            .iter()
            .filter(|r| r.key.0 == sequence.deployment && r.ready)
            .collect();
        // One more stream than a driver takes would wait for a place and then look like a fault. A
        // sequence under way waits all the same: its client has been promised the rest.
        let drivers = &self.fleet.shared.drivers;
        let has_room = |r: &Route| {
            self.progress.is_under_way() || drivers.has_room(r, sequence.tenant, sequence.weight)
        };
        let open = ready
            .iter()
            .filter(|r| !self.full.contains(&(r.key, r.epoch)) && has_room(r));
        let best = open.min_by_key(|r| {
            let failed = self.avoid == Some((r.key, r.epoch));
            (failed, drivers.load(r), r.key)
        });
        match best {
            Some(route) => Some(Ok((*route).clone())),
            None if ready.is_empty() => None,
            None => Some(Err(DispatchError::Overloaded)),
        }
    }

    async fn attempt(&mut self, route: &Route, accepted: &mut Option<Accepted>) -> Attempt {
        let request = self.progress.request(route);
        let units = |state: &State| TokenUnits::of_route(state, route);
        let mut tally = Tally::new(
            self.progress.sequence().work.clone(),
            self.fleet.shared.group.read(units),
            request.prompt.len(),
            request.emitted.len(),
        );
        let mut exchange = match Exchange::open(self.fleet, route, &request).await {
            Ok(exchange) => exchange,
            Err(reason) => return Attempt::Lost(reason),
        };
        let accepted = accepted.insert(Accepted {
            at: Instant::now(),
            advanced: false,
        });
        let over = epoch_over(self.fleet.shared.routes.subscribe(), route);
        tokio::pin!(over);
        let mut said_at: Option<Instant> = None;
        loop {
            let event = tokio::select! {
                () = &mut over => {
                    return Attempt::Lost("its replica is being planned again".into());
                }
                event = exchange.next() => match event {
                    Ok(event) => event,
                    Err(reason) => return Attempt::Lost(reason),
                },
            };
            if matches!(event, GenerateEvent::Token { .. })
                && said_at.is_none_or(|at| at.elapsed() >= TOKENS_SEEN_INTERVAL)
            {
                said_at = Some(Instant::now());
                let (key, epoch) = (route.key, route.epoch);
                self.fleet.feed(Event::TokensSeen { key, epoch });
            }
            if let GenerateEvent::Started { cached_tokens } = event {
                tally.started(cached_tokens);
            }
            match self.progress.on(event) {
                Step::Skip => {}
                Step::Forward(event) => {
                    if matches!(event, GenerateEvent::Token { .. }) {
                        tally.token();
                    }
                    accepted.advanced = true;
                    if !self.forward(event).await {
                        return Attempt::Stalled;
                    }
                }
                Step::Last(event) => {
                    exchange.complete();
                    self.forward(event).await;
                    return Attempt::Finished;
                }
                Step::Overloaded => return Attempt::Overloaded,
                Step::Invalid(reason) => return Attempt::Invalid(reason),
                Step::Lost(reason) => return Attempt::Lost(reason),
            }
        }
    }

    /// False if the client does not read any more.
    async fn forward(&self, event: GenerateEvent) -> bool {
        let sent = timeout(limits::STREAM_STALL_MAX, self.events.send(Ok(event))).await;
        matches!(sent, Ok(Ok(())))
    }
}

/// Ends when the replica's epoch does.
async fn epoch_over(mut routes: watch::Receiver<Vec<Route>>, route: &Route) {
    let lives = |all: &[Route]| {
        let same = |r: &Route| r.key == route.key && r.epoch == route.epoch;
        all.iter().any(same)
    };
    while lives(&routes.borrow_and_update()) {
        if routes.changed().await.is_err() {
            return;
        }
    }
}

/// One generate stream. Dropping it before `complete` cancels the sequence at the driver.
struct Exchange {
    send: quinn::SendStream,
    frames: FrameReader,
    complete: bool,
    _load: Load,
}

impl Exchange {
    async fn open(fleet: &Fleet, route: &Route, request: &GenerateRequest) -> Result<Self, String> {
        let endpoint = fleet
            .shared
            .endpoint
            .get()
            .ok_or("this coordinator serves no workers yet")?;
        let drivers = &fleet.shared.drivers;
        let load = drivers.count(route, request.tenant, request.weight);
        let connection = drivers.connection(endpoint, route).await?;
        let opened = timeout(limits::CONTROL_DEADLINE, connection.quic().open_bi()).await;
        let (send, recv) = opened
            .map_err(|_| "its driver takes no more streams".to_owned())?
            .map_err(|e| format!("its driver's connection ended: {e}"))?;
        let mut exchange = Self {
            send,
            frames: FrameReader::new(recv, limits::GENERATE_FRAME_BYTES_MAX),
            complete: false,
            _load: load,
        };
        let write = write_frame(
            &mut exchange.send,
            request,
            limits::GENERATE_FRAME_BYTES_MAX,
        );
        timeout(limits::CONTROL_DEADLINE, write)
            .await
            .map_err(|_| "its driver does not read".to_owned())?
            .map_err(|e| e.to_string())?;
        Ok(exchange)
    }

    async fn next(&mut self) -> Result<GenerateEvent, String> {
        let frame = timeout(limits::GENERATE_SILENCE_MAX, self.frames.next()).await;
        match frame {
            Err(_) => Err("its driver fell silent".into()),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(None)) => Err("its driver ended the stream early".into()),
            Ok(Ok(Some(event))) => Ok(event),
        }
    }

    fn complete(&mut self) {
        self.complete = true;
        let _ = self.send.finish();
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.complete {
            // The receiving half is stopped by its own drop. An error means that it is over anyway.
            let _ = self.send.reset(CANCELLED.into());
        }
    }
}

/// Asks a replica's driver for one token, which must pass every stage.
pub(super) async fn probe(fleet: &Fleet, route: &Route) -> Result<(), String> {
    let request = GenerateRequest {
        request: RequestId::random(),
        tenant: TenantId(0),
        weight: 1,
        priority: Priority::default(),
        deployment: route.key.0,
        replica: route.key.1,
        epoch: route.epoch,
        prompt: vec![0],
        emitted: Vec::new(),
        max_tokens: 1,
        sampling: Sampling::default(),
        stop_tokens: Vec::new(),
        logprobs: None,
        prompt_logprobs: None,
    };
    let work = async {
        let mut exchange = Exchange::open(fleet, route, &request).await?;
        let mut tokens = 0;
        loop {
            match exchange.next().await? {
                GenerateEvent::Token { .. } => tokens += 1,
                GenerateEvent::Finished { .. } if tokens > 0 => {
                    exchange.complete();
                    return Ok(());
                }
                GenerateEvent::Finished { .. } => return Err("it ended without a token".into()),
                GenerateEvent::Failed { reason, .. } => return Err(reason),
                GenerateEvent::Started { .. } | GenerateEvent::PromptLogprobs { .. } => {}
            }
        }
    };
    timeout(limits::PROBE_DEADLINE, work)
        .await
        .unwrap_or_else(|_| Err("no token in time".into()))
}
