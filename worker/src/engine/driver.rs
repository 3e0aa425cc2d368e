//! The driver: the rank that batches for its replica (stage 0, rank 0), and runs its own share of
//! each step besides.
//!
//! One turn of its loop: take what arrived, drop clients that left, plan, send the plan to every
//! other rank, run the own share; once the pipeline is full (at once with a single stage) take the
//! results of the oldest step. With nothing to do it is parked on its mailbox. Anything that fails
//! ends the epoch: every client hears `ReplicaLost`, and its stream goes on elsewhere.

use super::batcher::{Batcher, Capacity};
use super::clients::{self, Clients};
use super::mailbox::{Inbox, Mailbox, Submission};
use super::plan::{PlanError, StepPlan, StepResults};
use super::rank::RankError;
use super::step::{StepError, StepRunner};
use crate::parallel::Abort;
use crate::parallel::channel::{PlanSender, SampledReceiver};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;
use trireme_shared::wire::control::EngineStats;

pub struct Driver {
    runner: StepRunner,
    plans: Vec<PlanSender>,
    /// With one stage only, this rank samples itself.
    sampled: Option<SampledReceiver>,
    batcher: Batcher,
    clients: Clients,
    mailbox: Arc<Mailbox>,
    stats: watch::Sender<EngineStats>,
    abort: Abort,
}

/// What connects a driver with the rest of the worker.
pub struct DriverParts {
    pub mailbox: Arc<Mailbox>,
    pub stats: watch::Sender<EngineStats>,
    pub abort: Abort,
    pub runtime: tokio::runtime::Handle,
}

impl Driver {
    pub fn new(
        capacity: Capacity,
        runner: StepRunner,
        plans: Vec<PlanSender>,
        sampled: Option<SampledReceiver>,
        parts: DriverParts,
    ) -> Self {
        Self {
            runner,
            plans,
            sampled,
            batcher: Batcher::new(capacity),
            clients: Clients::new(parts.mailbox.clone(), parts.runtime),
            mailbox: parts.mailbox,
            stats: parts.stats,
            abort: parts.abort,
        }
    }

    /// Runs steps until the rank is stopped (`RankError::Stopped`) or fails.
    pub fn run(&mut self) -> RankError {
        let Err(error) = self.run_steps();
        self.mailbox.close();
        let reason = error.chain();
        for Submission { events, .. } in self.mailbox.take().submissions {
            clients::fail(&events, &reason);
        }
        self.clients.fail_all(&reason);
        error
    }

    fn run_steps(&mut self) -> Result<std::convert::Infallible, RankError> {
        loop {
            let inbox = self.mailbox.take();
            self.accept(inbox)?;
            self.clients.sweep(&mut self.batcher);
            if let Some(plan) = self.batcher.plan(Instant::now()) {
                self.start_step(&plan)?;
            } else if self.batcher.steps_in_flight() > 0 {
                let results = self.receive_results()?;
                self.batcher
                    .complete(results, Instant::now())
                    .map_err(StepError::from)?;
            } else {
                self.publish();
                let inbox = self.mailbox.wait();
                self.accept(inbox)?;
            }
            self.clients.deliver(&mut self.batcher);
            self.publish();
        }
    }

    fn accept(&mut self, inbox: Inbox) -> Result<(), RankError> {
        for Submission { request, events } in inbox.submissions {
            let id = self.batcher.submit(request);
            self.clients.add(id, events);
        }
        for nudge in inbox.nudges {
            self.clients.nudged(nudge, &mut self.batcher);
        }
        self.clients.deliver(&mut self.batcher);
        if inbox.closed || self.abort.is_raised() {
            return Err(RankError::Stopped);
        }
        Ok(())
    }

    fn start_step(&mut self, plan: &StepPlan) -> Result<(), StepError> {
        if !self.plans.is_empty() {
            let bytes = plan.encode()?;
            for sender in &mut self.plans {
                sender.send(&bytes)?;
            }
        }
        if let Some(results) = self.runner.run(plan)? {
            self.batcher.complete(results, Instant::now())?;
        }
        Ok(())
    }

    /// The results of the oldest step in flight, from the last stage.
    fn receive_results(&mut self) -> Result<StepResults, StepError> {
        let Some(sampled) = &mut self.sampled else {
            return Err(PlanError("a single stage left a step without results".into()).into());
        };
        Ok(StepResults::decode(&sampled.recv()?)?)
    }

    fn publish(&self) {
        let stats = self.batcher.stats();
        self.stats.send_if_modified(|old| {
            let changed = *old != stats;
            *old = stats;
            changed
        });
    }
}
