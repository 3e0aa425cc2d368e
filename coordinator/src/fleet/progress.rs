//! What one sequence's client has seen so far, whichever replicas it came from. Pure.
//!
//! What it keeps true: token indexes and prompt positions go out contiguous, each once; a sequence
//! that goes on elsewhere takes its emitted tokens along.

use super::dispatch::SequenceRequest;
use super::reconcile::Route;
use trireme_shared::wire::generate::{FailureKind, FinishReason, GenerateEvent, GenerateRequest};

pub(super) struct Progress {
    sequence: SequenceRequest,
    emitted: Vec<u32>,
    started: bool,
    /// The prompt position whose logprobs come next, once any came.
    next_scored: Option<u32>,
}

/// What a driver's event means for the client.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    Forward(GenerateEvent),
    /// The client has it already.
    Skip,
    /// The sequence is complete with this event.
    Last(GenerateEvent),
    Overloaded,
    Invalid(String),
    /// This driver is of no more use; another may go on.
    Lost(String),
}

impl Progress {
    pub(super) fn new(sequence: SequenceRequest) -> Self {
        Self {
            sequence,
            emitted: Vec::new(),
            started: false,
            next_scored: None,
        }
    }

    pub(super) fn sequence(&self) -> &SequenceRequest {
        &self.sequence
    }

    /// The client has seen anything at all, so the request can no longer be refused as a whole.
    pub(super) fn is_under_way(&self) -> bool {
        self.started
    }

    /// The request for the rest of the sequence.
    pub(super) fn request(&self, route: &Route) -> GenerateRequest {
        let s = &self.sequence;
        // Prompt logprobs come before any token: with tokens out they are all delivered.
        let score_prompt = self.emitted.is_empty();
        GenerateRequest {
            request: s.request.clone(),
            tenant: s.tenant,
            weight: s.weight,
            priority: s.priority,
            deployment: s.deployment,
            replica: route.key.1,
            epoch: route.epoch,
            prompt: s.prompt.clone(),
            emitted: self.emitted.clone(),
            max_tokens: s.max_tokens,
            sampling: s.sampling.clone(),
            stop_tokens: s.stop_tokens.clone(),
            logprobs: s.logprobs,
            prompt_logprobs: s.prompt_logprobs.filter(|_| score_prompt),
        }
    }

    /// The last event, where every token is out and only that event was lost with its driver.
    pub(super) fn finished(&self) -> Option<GenerateEvent> {
        let last = self.emitted.last()?;
        let reason = if self.sequence.stop_tokens.contains(last) {
            FinishReason::Stop
        } else if self.emitted.len() >= self.sequence.max_tokens as usize {
            FinishReason::Length
        } else {
            return None;
        };
        Some(GenerateEvent::Finished { reason })
    }

    pub(super) fn on(&mut self, event: GenerateEvent) -> Step {
        match event {
            GenerateEvent::Started { .. } if self.started => Step::Skip,
            GenerateEvent::Started { .. } => {
                self.started = true;
                Step::Forward(event)
            }
            GenerateEvent::PromptLogprobs { first, entries } => self.scored(first, entries),
            GenerateEvent::Token { index, token, .. } => {
                match self.emitted.get(index as usize) {
                    Some(known) if *known == token => return Step::Skip,
                    Some(_) => return out_of_order(index),
                    None if index as usize != self.emitted.len() => return out_of_order(index),
                    None => {}
                }
                self.started = true;
                self.emitted.push(token);
                Step::Forward(event)
            }
            GenerateEvent::Finished { .. } => Step::Last(event),
            GenerateEvent::Failed { kind, reason } => match kind {
                FailureKind::Overloaded => Step::Overloaded,
                FailureKind::Invalid => Step::Invalid(reason),
                FailureKind::WrongEpoch | FailureKind::ReplicaLost => Step::Lost(reason),
            },
        }
    }

    fn scored(
        &mut self,
        first: u32,
        mut entries: Vec<trireme_shared::wire::generate::TokenLogprobs>,
    ) -> Step {
        let next = self.next_scored.unwrap_or(first);
        let Some(seen) = next.checked_sub(first) else {
            return out_of_order(first);
        };
        let seen = (seen as usize).min(entries.len());
        entries.drain(..seen);
        if entries.is_empty() {
            return Step::Skip;
        }
        self.started = true;
        self.next_scored = Some(next.saturating_add(entries.len() as u32));
        Step::Forward(GenerateEvent::PromptLogprobs {
            first: next,
            entries,
        })
    }
}

fn out_of_order(index: u32) -> Step {
    Step::Lost(format!("the driver sent position {index} out of order"))
}

#[cfg(test)]
mod tests {
    use super::super::work::WorkLog;
    use super::*;
    use trireme_shared::ids::{DeploymentId, Epoch, Replica, RequestId, TenantId, WorkerId};
    use trireme_shared::wire::generate::{Priority, Sampling, TokenLogprobs};

    fn progress(max_tokens: u32) -> Progress {
        Progress::new(SequenceRequest {
            request: RequestId::parse("r").unwrap(),
            tenant: TenantId(1),
            weight: 1,
            priority: Priority::High,
            deployment: DeploymentId(1),
            prompt: vec![1, 2, 3, 4],
            max_tokens,
            sampling: Sampling::default(),
            stop_tokens: vec![9],
            logprobs: None,
            prompt_logprobs: Some(0),
            work: WorkLog::default(),
        })
    }

    fn token(index: u32, token: u32) -> GenerateEvent {
        GenerateEvent::Token {
            index,
            token,
            logprobs: None,
        }
    }

    fn scores(first: u32, tokens: &[u32]) -> GenerateEvent {
        let entry = |t: &u32| TokenLogprobs {
            token: *t,
            logprob: -1.0,
            top: Vec::new(),
        };
        GenerateEvent::PromptLogprobs {
            first,
            entries: tokens.iter().map(entry).collect(),
        }
    }

    #[test]
    fn a_resumed_sequence_repeats_and_skips_nothing() {
        let mut p = progress(4);
        assert!(matches!(
            p.on(GenerateEvent::Started { cached_tokens: 0 }),
            Step::Forward(_)
        ));
        assert_eq!(p.on(scores(1, &[2, 3])), Step::Forward(scores(1, &[2, 3])));
        // The first driver dies here; the second starts over and sends overlapping positions.
        assert_eq!(
            p.on(GenerateEvent::Started { cached_tokens: 0 }),
            Step::Skip
        );
        assert_eq!(p.on(scores(1, &[2])), Step::Skip);
        assert_eq!(p.on(scores(2, &[3, 4])), Step::Forward(scores(3, &[4])));
        assert!(matches!(p.on(token(0, 50)), Step::Forward(_)));
        assert!(matches!(p.on(token(1, 51)), Step::Forward(_)));
        assert_eq!(p.on(token(1, 51)), Step::Skip);
        assert!(matches!(p.on(token(1, 52)), Step::Lost(_)));
        assert!(matches!(p.on(token(3, 52)), Step::Lost(_)));
        let route = Route {
            key: (DeploymentId(1), Replica(2)),
            epoch: Epoch(7),
            driver: WorkerId(1),
            address: String::new(),
            ready: true,
        };
        let request = p.request(&route);
        assert_eq!(request.emitted, [50, 51]);
        assert_eq!((request.replica, request.epoch), (Replica(2), Epoch(7)));
        assert_eq!(request.prompt_logprobs, None);
        assert_eq!(p.finished(), None);
    }

    #[test]
    fn a_lost_last_event_is_made_up_for() {
        let mut p = progress(2);
        p.on(token(0, 50));
        assert_eq!(p.finished(), None);
        p.on(token(1, 51));
        let length = FinishReason::Length;
        assert_eq!(
            p.finished(),
            Some(GenerateEvent::Finished { reason: length })
        );
        let mut p = progress(100);
        p.on(token(0, 9));
        let stop = FinishReason::Stop;
        assert_eq!(p.finished(), Some(GenerateEvent::Finished { reason: stop }));
    }

    #[test]
    fn a_gap_in_prompt_positions_is_a_fault() {
        let mut p = progress(2);
        p.on(scores(1, &[2]));
        assert!(matches!(p.on(scores(3, &[4])), Step::Lost(_)));
    }
}
