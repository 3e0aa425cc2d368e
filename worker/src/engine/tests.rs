//! The whole engine on tiny random models: real weights, real kernels, real links in one process.

use super::batcher::tests::request as plain_request;
use super::*;
use crate::model::Runtime;
use crate::parallel::WaitPolicy;
use crate::parallel::mesh::{Shape, in_process};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use trireme_shared::ids::{DeploymentId, Epoch, Replica as ReplicaNumber, WorkerId};
use trireme_shared::model::random::RandomModel;
use trireme_shared::model::{Manifest, Precision};
use trireme_shared::plan::{LinkPolicy, ModelRef, RankPlacement, ReplicaPlan};
use trireme_shared::wire::generate::{FailureKind, FinishReason, TokenLogprobs};

/// Far longer than any wait of these tests takes; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(120);

fn manifest() -> Manifest {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("trireme-engine-{}-{number}.gguf", std::process::id());
    let path = std::env::temp_dir().join(name);
    RandomModel::tiny(11).write_gguf(&path).unwrap();
    Manifest::open(&path).unwrap()
}

/// A replica whose ranks are threads of this process.
struct TestReplica {
    runtime: tokio::runtime::Runtime,
    ranks: Vec<RankHandle>,
    plan: ReplicaPlan,
    file: PathBuf,
}

impl TestReplica {
    fn start(tensor_parallel: u16, pipeline_parallel: u16, kv_pages: u32) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let manifest = manifest();
        let file = manifest.files[0].clone();
        let weights = vec![vec![1; usize::from(tensor_parallel)]; usize::from(pipeline_parallel)];
        let placements =
            manifest
                .shares(&weights)
                .unwrap()
                .into_iter()
                .map(|share| RankPlacement {
                    weight_bytes: manifest.share_bytes(&share),
                    share,
                    worker: WorkerId(1),
                    address: String::new(),
                    host: "here".into(),
                });
        let plan = ReplicaPlan {
            deployment: DeploymentId(1),
            replica: ReplicaNumber(0),
            epoch: Epoch(1),
            model: ModelRef {
                name: "tiny".into(),
                source: String::new(),
                sha256: None,
            },
            tensor_parallel,
            pipeline_parallel,
            link: LinkPolicy::Auto,
            precision: Precision::default(),
            ranks: placements.collect(),
            kv_pages,
            context: 512.min(kv_pages * 16),
            nonce: [0; 16],
        };
        let shape = Shape {
            tensor_parallel,
            pipeline_parallel,
        };
        let aborts: Vec<_> = (0..shape.ranks()).map(|_| Abort::default()).collect();
        let links = in_process(shape, plan.epoch, WaitPolicy::crowded(), &aborts).unwrap();
        let mut ranks = Vec::new();
        for (index, (links, abort)) in links.into_iter().zip(aborts).enumerate() {
            let assignment = Assignment {
                plan: plan.clone(),
                index: index as u16,
            };
            let manifest = manifest.clone();
            let prepare = move |shared: &Shared| {
                let plan = &shared.assignment.plan;
                let compute = Runtime {
                    threads: 1,
                    isa: Isa::detect(),
                    kv_pages: plan.kv_pages as usize,
                    activations: plan.precision.activations,
                    kv: plan.precision.kv,
                };
                let share = &plan.ranks[index].share;
                let model = RankModel::load(&manifest, share, &compute, &|_, _| {}, &shared.abort)?;
                Ok((model, links))
            };
            ranks.push(RankHandle::start_with(
                assignment,
                abort,
                runtime.handle().clone(),
                prepare,
            ));
        }
        let replica = Self {
            runtime,
            ranks,
            plan,
            file,
        };
        for rank in &replica.ranks {
            let mut state = rank.state();
            let ready =
                state.wait_for(|s| matches!(s, RankState::Ready | RankState::Failed { .. }));
            let reached = replica.within(ready).unwrap().clone();
            assert_eq!(reached, RankState::Ready);
        }
        replica
    }

    fn within<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime
            .block_on(async { tokio::time::timeout(PATIENCE, future).await })
            .expect("no hang")
    }

    fn driver(&self) -> &RankHandle {
        &self.ranks[0]
    }

    fn run(&self, request: GenerateRequest) -> Outcome {
        self.run_all(vec![request]).remove(0)
    }

    /// Submits all at once, then reads all to the end.
    fn run_all(&self, requests: Vec<GenerateRequest>) -> Vec<Outcome> {
        let streams: Vec<_> = requests
            .into_iter()
            .map(|request| self.driver().submit(request).unwrap())
            .collect();
        let read = async {
            let mut outcomes = Vec::new();
            for mut stream in streams {
                outcomes.push(Outcome::read(&mut stream).await);
            }
            outcomes
        };
        self.within(read)
    }

    fn wait_for_stats(&self, wanted: impl FnMut(&EngineStats) -> bool) -> EngineStats {
        let mut stats = self.driver().shared.stats.subscribe();
        *self.within(stats.wait_for(wanted)).unwrap()
    }
}

impl Drop for TestReplica {
    fn drop(&mut self) {
        // Best effort: a test that failed has other worries.
        let _ = std::fs::remove_file(&self.file);
        for rank in self.ranks.drain(..) {
            rank.stop();
        }
    }
}

#[derive(Debug, Default)]
struct Outcome {
    scores: Vec<TokenLogprobs>,
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    first_index: Option<u32>,
    last: Option<GenerateEvent>,
}

impl Outcome {
    async fn read(stream: &mut mpsc::Receiver<GenerateEvent>) -> Self {
        let mut outcome = Self::default();
        while let Some(event) = stream.recv().await {
            assert!(outcome.last.is_none(), "{event:?} after the last event");
            match event {
                GenerateEvent::Started { .. } => {}
                GenerateEvent::PromptLogprobs { entries, .. } => outcome.scores.extend(entries),
                GenerateEvent::Token {
                    index,
                    token,
                    logprobs,
                } => {
                    let first = *outcome.first_index.get_or_insert(index);
                    assert_eq!(index - first, outcome.tokens.len() as u32);
                    outcome.tokens.push(token);
                    outcome.logprobs.extend(logprobs);
                }
                last => outcome.last = Some(last),
            }
        }
        outcome
    }

    /// The same greedy tokens, up to where two candidates are too close for f32 sums of another
    /// order to agree on.
    fn agrees_with(&self, other: &Self) -> usize {
        for (at, (a, b)) in self.tokens.iter().zip(&other.tokens).enumerate() {
            let top = &self.logprobs[at].top;
            if a != b {
                assert!(
                    top[0].1 - top[1].1 < 1e-3,
                    "token {at}: {a} and {b}, {top:?}"
                );
                return at;
            }
            let difference = (self.logprobs[at].logprob - other.logprobs[at].logprob).abs();
            assert!(difference < 1e-3, "token {at} differs by {difference}");
        }
        assert_eq!(self.last, other.last);
        self.tokens.len()
    }
}

fn request(prompt: Vec<u32>, max_tokens: u32) -> GenerateRequest {
    let mut request = plain_request(prompt, max_tokens);
    request.logprobs = Some(2);
    request
}

/// Greedy requests of many lengths; the longest prompt takes several steps beside decodes.
fn greedy_requests() -> Vec<GenerateRequest> {
    [1, 2, 15, 16, 17, 40, 300]
        .iter()
        .map(|&len| {
            let prompt = (0..len).map(|i| (i * i * 7 + len * 13) % 272).collect();
            request(prompt, 24)
        })
        .collect()
}

fn compare(ours: &[Outcome], alone: &[Outcome]) {
    let agreed: usize = ours
        .iter()
        .zip(alone)
        .map(|(ours, alone)| ours.agrees_with(alone))
        .sum();
    let all: usize = alone.iter().map(|o| o.tokens.len()).sum();
    assert_eq!(all, 7 * 24);
    assert!(agreed * 10 > all * 9, "only {agreed} of {all} compared");
}

fn alone() -> Vec<Outcome> {
    let replica = TestReplica::start(1, 1, 64);
    let requests = greedy_requests();
    requests.into_iter().map(|r| replica.run(r)).collect()
}

#[test]
fn together_as_alone_whole_or_split() {
    let alone = alone();
    for (tensor_parallel, pipeline_parallel) in [(1, 1), (2, 1), (3, 1), (1, 2), (1, 3), (2, 2)] {
        let replica = TestReplica::start(tensor_parallel, pipeline_parallel, 64);
        compare(&replica.run_all(greedy_requests()), &alone);
        let stats = replica.wait_for_stats(|s| s.running == 0);
        assert_eq!((stats.kv_pages_used, stats.waiting), (0, 0));
        assert_eq!(stats.generated_tokens, 7 * 24);
    }
}

#[test]
fn preemption_changes_nothing_a_client_sees() {
    let alone = alone();
    for pipeline_parallel in [1, 2] {
        // 21 pages hold the longest sequence and one token of another.
        let replica = TestReplica::start(1, pipeline_parallel, 21);
        let mut requests = greedy_requests();
        // The longest first, so that those behind it are the ones to give way.
        requests.rotate_right(1);
        let mut outcomes = replica.run_all(requests);
        outcomes.rotate_left(1);
        compare(&outcomes, &alone);
        let crowd = (0..12).map(|i| request(vec![i; 10], 60)).collect();
        for outcome in replica.run_all(crowd) {
            assert_eq!(outcome.tokens.len(), 60);
        }
        let stats = replica.wait_for_stats(|s| s.running == 0);
        assert!(stats.preemptions > 0);
        assert_eq!(stats.kv_pages_used, 0);
    }
}

#[test]
fn a_client_that_leaves_frees_its_pages() {
    let replica = TestReplica::start(1, 2, 64);
    let mut streams: Vec<_> = (0..4)
        .map(|i| replica.driver().submit(request(vec![i; 20], 480)).unwrap())
        .collect();
    let first = replica.within(streams[0].recv());
    assert_eq!(first, Some(GenerateEvent::Started { cached_tokens: 0 }));
    drop(streams);
    let stats = replica.wait_for_stats(|s| s.steps > 0 && s.running + s.waiting == 0);
    assert_eq!(stats.kv_pages_used, 0);
    assert_eq!(replica.run(request(vec![5], 3)).tokens.len(), 3);
}

#[test]
fn a_resumed_sequence_goes_on_as_it_would_have() {
    let replica = TestReplica::start(2, 1, 64);
    let mut whole = request(vec![9, 8, 7], 40);
    whole.sampling.temperature = 1.0;
    whole.sampling.top_p = 0.95;
    whole.sampling.frequency_penalty = 0.3;
    whole.sampling.seed = 4;
    let first = replica.run(whole.clone());
    assert_eq!(first.tokens.len(), 40);
    let mut resumed = whole.clone();
    resumed.emitted = first.tokens[..17].to_vec();
    let second = replica.run(resumed);
    assert_eq!(second.first_index, Some(17));
    assert_eq!(second.tokens, first.tokens[17..]);
    whole.sampling.seed = 5;
    assert_ne!(replica.run(whole).tokens, first.tokens);
}

#[test]
fn guesses_change_no_token() {
    for (tensor_parallel, pipeline_parallel) in [(1, 1), (2, 1), (1, 2)] {
        let replica = TestReplica::start(tensor_parallel, pipeline_parallel, 64);
        let requests = |drafts: u8| -> Vec<_> {
            let asked = |seed: u32| {
                let mut asked = request(vec![seed, 5, 6, 7, 5, 6], 120);
                asked.sampling.seed = seed.into();
                asked.sampling.drafts = drafts;
                match seed % 3 {
                    0 => {}
                    1 => (asked.sampling.temperature, asked.sampling.top_k) = (0.7, 2),
                    _ => asked.sampling.frequency_penalty = 0.2,
                }
                asked
            };
            (0..6).map(asked).collect()
        };
        let without = replica.run_all(requests(0));
        let before = replica.wait_for_stats(|s| s.running == 0);
        let with = replica.run_all(requests(8));
        let after = replica.wait_for_stats(|s| s.running == 0);
        for (with, without) in with.iter().zip(&without) {
            assert_eq!(with.tokens, without.tokens);
            assert_eq!(with.last, without.last);
        }
        assert_eq!(after.generated_tokens, 2 * before.generated_tokens);
        // One that says the same word for ever is easily guessed, once it is known that rows are cheap: on
        // a busy machine that may take some steps of each size.
        let came_true = (2..60).any(|length| {
            let before = replica.wait_for_stats(|s| s.running == 0).steps;
            let mut stuck = request(vec![length; 1 + length as usize % 12], 120);
            stuck.sampling.logit_bias = vec![(9, 1e4)];
            stuck.sampling.drafts = 8;
            assert_eq!(replica.run(stuck).tokens, [9; 120]);
            replica.wait_for_stats(|s| s.running == 0).steps - before < 100
        });
        assert!(came_true);
    }
}

#[test]
fn scores_of_a_prompt_are_the_logprobs_it_was_generated_with() {
    for tensor_parallel in [1, 3] {
        let replica = TestReplica::start(tensor_parallel, 1, 64);
        let prompt: Vec<u32> = (0..50).collect();
        let made = replica.run(request(prompt.clone(), 30));
        let mut score = request([prompt, made.tokens.clone()].concat(), 0);
        score.prompt_logprobs = Some(2);
        let text = score.prompt.clone();
        let scored = replica.run(score);
        assert!(scored.tokens.is_empty());
        assert_eq!(
            scored.last,
            Some(GenerateEvent::Finished {
                reason: FinishReason::Length
            })
        );
        let tokens: Vec<u32> = scored.scores.iter().map(|s| s.token).collect();
        assert_eq!(tokens, text[1..]);
        for (score, generated) in scored.scores[49..].iter().zip(&made.logprobs) {
            assert!((score.logprob - generated.logprob).abs() < 1e-3);
            assert_eq!(score.top.len(), 2);
        }
    }
}

#[test]
fn a_stopped_or_dead_rank_answers_every_client() {
    for victim in [0, 1, 2] {
        let mut replica = TestReplica::start(1, 3, 64);
        let mut streams: Vec<_> = (0..3)
            .map(|i| replica.driver().submit(request(vec![i; 20], 480)).unwrap())
            .collect();
        replica.within(streams[0].recv()).unwrap();
        // The victim's links close, as they do when its process dies.
        replica.ranks.remove(victim).stop();
        for mut stream in streams {
            let outcome = replica.within(Outcome::read(&mut stream));
            match outcome.last {
                Some(GenerateEvent::Failed { kind, .. }) => {
                    assert_eq!(kind, FailureKind::ReplicaLost);
                }
                other => panic!("{other:?}"),
            }
        }
        if victim != 0 {
            let mut state = replica.driver().state();
            let failed = state.wait_for(|s| matches!(s, RankState::Failed { .. }));
            drop(replica.within(failed).unwrap());
            let refused = replica.driver().submit(request(vec![1], 1));
            assert!(matches!(refused, Err(SubmitError::WrongEpoch)));
        }
    }
}

#[test]
fn requests_that_do_not_belong_are_refused() {
    let replica = TestReplica::start(2, 1, 8);
    let refusal = |change: &dyn Fn(&mut GenerateRequest)| {
        let mut request = request(vec![1], 1);
        change(&mut request);
        replica.driver().submit(request).err().unwrap()
    };
    for change in [
        (&|r: &mut GenerateRequest| r.epoch = Epoch(2)) as &dyn Fn(&mut GenerateRequest),
        &|r| r.deployment = DeploymentId(2),
        &|r| r.replica = ReplicaNumber(1),
    ] {
        assert!(matches!(refusal(change), SubmitError::WrongEpoch));
    }
    assert!(matches!(
        refusal(&|r| r.prompt = vec![272]),
        SubmitError::Invalid(_)
    ));
    assert!(matches!(
        refusal(&|r| r.prompt = vec![1; 129]),
        SubmitError::Invalid(_)
    ));
    assert!(matches!(
        replica.ranks[1].submit(request(vec![1], 1)),
        Err(SubmitError::NotDriver)
    ));
    assert_eq!(replica.ranks[1].stats(), None);
    // Clamped to the context of 8 pages.
    assert_eq!(replica.run(request(vec![1; 100], 60)).tokens.len(), 28);
}

#[test]
fn a_panic_becomes_a_failed_rank() {
    let replica = TestReplica::start(1, 1, 8);
    let assignment = Assignment {
        plan: replica.plan.clone(),
        index: 0,
    };
    let handle = RankHandle::start_with(
        assignment,
        Abort::default(),
        replica.runtime.handle().clone(),
        |_| panic!("a planted defect"),
    );
    let mut state = handle.state();
    let failed = state.wait_for(|s| matches!(s, RankState::Failed { .. }));
    let reached = replica.within(failed).unwrap().clone();
    match reached {
        RankState::Failed { reason } => assert!(reason.contains("a planted defect"), "{reason}"),
        other => panic!("{other:?}"),
    }
}
