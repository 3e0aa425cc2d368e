//! The batcher against pretend ranks whose "model" is a hash of what the KV pages really hold, so
//! that a page given to two sequences, a token at a wrong place or a lost step changes the tokens.

use super::super::plan::{Drawn, SequenceTable};
use super::*;
use crate::model::SequenceSlice;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::time::Duration;
use trireme_shared::ids::{DeploymentId, Epoch, Replica, RequestId, TenantId};
use trireme_shared::limits::PAGE_TOKENS;
use trireme_shared::wire::generate::{Priority, Sampling, TokenLogprobs};

const VOCAB: u32 = 1_000;

pub fn request(prompt: Vec<u32>, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        request: RequestId::parse("test").unwrap(),
        tenant: TenantId(1),
        weight: 1,
        priority: Priority::default(),
        deployment: DeploymentId(1),
        replica: Replica(0),
        epoch: Epoch(1),
        prompt,
        emitted: vec![],
        max_tokens,
        sampling: Sampling::default(),
        stop_tokens: vec![],
        logprobs: None,
        prompt_logprobs: None,
    }
}

/// Draws until a guess does not come true; `token` is drawn where so many guesses are left.
fn draw(entry: &PlanEntry, token: impl Fn(u32) -> u32) -> Vec<Drawn> {
    let mut drawn = Vec::new();
    for after in (0..=entry.drafts).rev() {
        let token = token(after);
        drawn.push(Drawn {
            token,
            logprobs: None,
        });
        if after > 0 && entry.tokens[entry.tokens.len() - after as usize] != token {
            break;
        }
    }
    drawn
}

/// The pretend model: the token after `tokens`. After an even token it counts in a small circle, so that it
/// can be guessed, but for each eleventh.
fn next_token(tokens: &[u32]) -> u32 {
    if let [.., last] = tokens
        && last % 2 == 0
        && !tokens.len().is_multiple_of(11)
    {
        return (last + 2) % 12;
    }
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for &token in tokens {
        hash = (hash ^ u64::from(token)).wrapping_mul(0x100_0000_01b3);
        hash ^= hash >> 29;
    }
    (hash % u64::from(VOCAB)) as u32
}

fn expected(request: &GenerateRequest, context: usize) -> (Vec<u32>, FinishReason) {
    let mut tokens = [request.prompt.clone(), request.emitted.clone()].concat();
    let max = (request.max_tokens as usize).min(context - request.prompt.len());
    let stopped = |t: &[u32]| {
        t.len() > request.prompt.len() && request.stop_tokens.contains(t.last().unwrap())
    };
    while tokens.len() - request.prompt.len() < max && !stopped(&tokens) {
        tokens.push(next_token(&tokens));
    }
    let reason = if stopped(&tokens) {
        FinishReason::Stop
    } else {
        FinishReason::Length
    };
    (
        tokens.split_off(request.prompt.len() + request.emitted.len()),
        reason,
    )
}

/// The ranks of a replica: one table and one KV memory stand for all of them.
struct Ranks {
    table: SequenceTable,
    memory: Vec<[u32; PAGE_TOKENS]>,
    /// Whose tokens each page holds.
    tenants: Vec<TenantId>,
}

impl Ranks {
    fn new(pages: u32) -> Self {
        Self {
            table: SequenceTable::new(pages, VOCAB),
            memory: vec![[u32::MAX; PAGE_TOKENS]; pages as usize],
            tenants: vec![TenantId(0); pages as usize],
        }
    }

    /// `tenants` are those of the plan's entries.
    fn run(&mut self, plan: &StepPlan, tenants: &[TenantId]) -> StepResults {
        let batch = self.table.apply(plan).expect("the plan is valid");
        let written =
            |slice: &SequenceSlice| slice.pages[slice.context as usize / PAGE_TOKENS..].to_vec();
        for (at, (slice, tenant)) in batch.sequences.iter().zip(tenants).enumerate() {
            for page in written(slice) {
                let mut others = batch.sequences.iter().enumerate().filter(|(i, _)| *i != at);
                assert!(!others.any(|(_, s)| s.pages.contains(&page)), "page shared");
                self.tenants[page as usize] = *tenant;
            }
            let whose = slice.pages.iter().map(|page| self.tenants[*page as usize]);
            assert!(whose.into_iter().all(|of| of == *tenant), "another's page");
            for row in 0..slice.len {
                let at = (slice.context + row) as usize;
                let page = slice.pages[at / PAGE_TOKENS] as usize;
                self.memory[page][at % PAGE_TOKENS] = batch.tokens[(slice.first + row) as usize];
            }
        }
        let mut results = Vec::new();
        for (entry, slice) in plan.entries.iter().zip(&batch.sequences) {
            let cached = |len: u32| -> Vec<u32> {
                (0..len as usize)
                    .map(|at| self.memory[slice.pages[at / PAGE_TOKENS] as usize][at % PAGE_TOKENS])
                    .collect()
            };
            let targets = entry.score.as_ref().map_or(&[][..], |s| &s.targets);
            let prompt = targets.iter().enumerate().map(|(i, &token)| {
                let row = entry.score.as_ref().unwrap().first_row + i as u32;
                TokenLogprobs {
                    token,
                    logprob: next_token(&cached(slice.context + row + 1)) as f32,
                    top: vec![],
                }
            });
            results.push(EntryResult {
                key: entry.key,
                prompt: prompt.collect(),
                sampled: match entry.sample {
                    None => Sampled::None,
                    Some(_) => Sampled::Tokens(draw(entry, |after| {
                        next_token(&cached(slice.context + slice.len - after))
                    })),
                },
            });
        }
        StepResults {
            step: plan.step,
            results,
        }
    }
}

#[derive(Default)]
pub struct Client {
    pub started: bool,
    pub cached: usize,
    scores: Vec<TokenLogprobs>,
    pub tokens: Vec<u32>,
    pub end: Option<GenerateEvent>,
}

/// A batcher, its ranks and its clients; steps come back in order, late by `steps_in_flight`.
pub struct World {
    pub batcher: Batcher,
    ranks: Ranks,
    flying: VecDeque<(StepResults, Duration)>,
    /// When steps are planned and end, which takes as long as `length` says of their tokens.
    pub now: Instant,
    pub length: fn(usize) -> Duration,
    pub clients: HashMap<SequenceId, (GenerateRequest, Client)>,
    /// Guesses that came true, and those that did not.
    guessed: [usize; 2],
}

impl World {
    pub fn new(pages: u32, context: u32, steps_in_flight: usize) -> Self {
        Self {
            batcher: Batcher::new(Capacity {
                kv_pages: pages,
                context,
                vocab: VOCAB,
                steps_in_flight,
            }),
            ranks: Ranks::new(pages),
            flying: VecDeque::new(),
            now: Instant::now(),
            length: |_| Duration::ZERO,
            clients: HashMap::new(),
            guessed: [0; 2],
        }
    }

    pub fn submit(&mut self, request: GenerateRequest) -> SequenceId {
        let id = self.batcher.submit(request.clone());
        self.clients.insert(id, (request, Client::default()));
        self.deliver();
        id
    }

    pub fn plan(&mut self) -> Option<StepPlan> {
        let plan = self.batcher.plan(self.now);
        if let Some(plan) = &plan {
            assert!(plan.rows() <= limits::STEP_TOKENS_MAX);
            let sent = StepPlan::decode(&plan.encode().unwrap()).unwrap();
            let tenants: Vec<TenantId> = plan
                .entries
                .iter()
                .map(|entry| self.clients[&self.batcher.by_key[&entry.key]].0.tenant)
                .collect();
            let results = self.ranks.run(&sent, &tenants);
            for result in &results.results {
                if let Sampled::Tokens(drawn) = &result.sampled {
                    let entry = plan.entries.iter().find(|e| e.key == result.key).unwrap();
                    self.guessed[0] += drawn.len() - 1;
                    self.guessed[1] += entry.drafts as usize + 1 - drawn.len();
                }
            }
            self.flying.push_back((results, (self.length)(plan.rows())));
        }
        self.deliver();
        plan
    }

    /// Plans, and takes the results of the oldest step.
    pub fn step(&mut self) {
        self.plan();
        self.land();
    }

    pub fn land(&mut self) -> bool {
        let Some((results, took)) = self.flying.pop_front() else {
            return false;
        };
        self.now += took;
        self.batcher.complete(results, self.now).unwrap();
        self.deliver();
        true
    }

    pub fn deliver(&mut self) {
        for Effect { sequence, event } in self.batcher.take_effects() {
            let (request, client) = self.clients.get_mut(&sequence).expect("a live client");
            assert!(client.end.is_none(), "an event after the last");
            match event {
                GenerateEvent::Started { cached_tokens } => {
                    assert!(!std::mem::replace(&mut client.started, true));
                    client.cached = cached_tokens as usize;
                    assert!(client.cached <= request.prompt.len());
                }
                GenerateEvent::PromptLogprobs { first, entries } => {
                    assert_eq!(first as usize, client.scores.len() + 1);
                    assert!(client.tokens.is_empty());
                    client.scores.extend(entries);
                }
                GenerateEvent::Token { index, token, .. } => {
                    assert_eq!(index as usize, request.emitted.len() + client.tokens.len());
                    client.tokens.push(token);
                }
                end => client.end = Some(end),
            }
        }
    }

    pub fn run_until_idle(&mut self) {
        while self.plan().is_some() || self.land() {}
    }

    /// The client got what the reference gives.
    pub fn check(&self, id: SequenceId, context: usize) {
        let (request, client) = &self.clients[&id];
        let (tokens, reason) = expected(request, context);
        assert!(client.started);
        assert_eq!(client.tokens, tokens, "{id:?}");
        assert_eq!(client.end, Some(GenerateEvent::Finished { reason }));
        if request.prompt_logprobs.is_some() && request.emitted.is_empty() {
            assert_eq!(client.scores.len(), request.prompt.len() - 1);
            for (i, score) in client.scores.iter().enumerate() {
                assert_eq!(score.token, request.prompt[i + 1]);
                assert_eq!(
                    score.logprob,
                    next_token(&request.prompt[..=i]) as f32,
                    "score of position {}",
                    i + 1
                );
            }
        } else {
            assert!(client.scores.is_empty());
        }
    }

    pub fn check_empty(&self) {
        let stats = self.batcher.stats();
        assert_eq!(
            (stats.running, stats.waiting, stats.kv_pages_used),
            (0, 0, 0)
        );
        // The next plan tells the ranks to forget them.
        assert_eq!(self.ranks.table.len(), self.batcher.removed.len());
    }
}

fn random_request(random: &mut ChaCha8Rng, context: u32) -> GenerateRequest {
    let mut below = |n: u32| random.next_u32() % n;
    let long = below(4) == 0;
    let prompt_len = 1 + below(if long { context } else { 40.min(context) });
    // Many begin alike, as conversations do, whoever's they are.
    let (stem, alike) = (below(3), below(prompt_len + 1) * below(2));
    let prompt = (0..prompt_len).map(|at| match at < alike {
        true => (stem * 7 + at) % VOCAB,
        false => below(VOCAB),
    });
    let mut made = request(prompt.collect(), below(60));
    made.tenant = TenantId(1 + below(3));
    made.weight = 1 + below(4);
    made.priority = Priority::ALL[below(3) as usize];
    if below(3) == 0 {
        made.prompt_logprobs = Some(0);
    }
    if below(4) == 0 {
        made.stop_tokens = (0..40).map(|_| below(VOCAB)).collect();
    }
    if below(4) == 0 {
        let all = expected(&made, context as usize).0;
        let cut = below(all.len() as u32 + 1) as usize;
        made.emitted = all[..cut].to_vec();
    }
    if below(3) == 0 {
        made.sampling.presence_penalty = 1.0;
    }
    made.sampling.drafts = below(9) as u8;
    made
}

/// Random arrivals, cancels, pauses and late results on small pools. Replay one seed by its number.
fn simulate(seed: u64) -> (u64, usize, [usize; 2]) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let pages = 4 + random.next_u32() % 40;
    let context = (pages * PAGE_TOKENS as u32).min(16 + random.next_u32() % 900);
    let in_flight = 1 + (random.next_u32() % 4) as usize;
    let mut world = World::new(pages, context, in_flight);
    // With some, steps are shared between tenants.
    if seed % 2 == 1 {
        world.length = |tokens| Duration::from_millis(2 + tokens as u64);
    }
    let mut live: Vec<SequenceId> = Vec::new();
    let mut paused: Vec<SequenceId> = Vec::new();
    let mut cancelled = std::collections::HashSet::new();
    for _ in 0..600 {
        match random.next_u32() % 10 {
            0 | 1 => live.push(world.submit(random_request(&mut random, context))),
            2 if !live.is_empty() && random.next_u32() % 4 == 0 => {
                let id = live.swap_remove(random.next_u32() as usize % live.len());
                world.batcher.cancel(id);
                if world.clients[&id].1.end.is_none() {
                    cancelled.insert(id);
                    world.clients.get_mut(&id).unwrap().1.end = Some(GenerateEvent::Finished {
                        reason: FinishReason::Stop,
                    });
                }
            }
            3 if !live.is_empty() && random.next_u32() % 4 == 0 => {
                let id = live[random.next_u32() as usize % live.len()];
                world.batcher.pause(id, true);
                paused.push(id);
            }
            4 => {
                for id in paused.drain(..) {
                    world.batcher.pause(id, false);
                }
            }
            5..=7 => {
                world.plan();
            }
            _ => {
                world.land();
            }
        }
        let stats = world.batcher.stats();
        assert!(stats.kv_pages_used <= pages);
        assert!(stats.running > 0 || stats.kv_pages_used == 0, "a leak");
    }
    for id in paused {
        world.batcher.pause(id, false);
    }
    world.run_until_idle();
    world.check_empty();
    for &id in world.clients.keys() {
        if !cancelled.contains(&id) {
            world.check(id, context as usize);
        }
    }
    let cached = world.clients.values().map(|(_, client)| client.cached);
    (
        world.batcher.stats().preemptions,
        cached.sum(),
        world.guessed,
    )
}

#[test]
fn random_traffic_on_tiny_pools_gives_every_client_its_tokens() {
    let (mut preemptions, mut cached, mut guessed) = (0, 0, [0; 2]);
    for seed in 0..150 {
        let outcome = std::panic::catch_unwind(|| simulate(seed));
        let (of, held, came_true) =
            outcome.unwrap_or_else(|_| panic!("replay with simulate({seed})"));
        preemptions += of;
        cached += held;
        guessed
            .iter_mut()
            .zip(came_true)
            .for_each(|(sum, n)| *sum += n);
    }
    assert!(guessed.iter().all(|n| *n > 1_000), "{guessed:?} guesses");
    assert!(cached > 2_000, "only {cached} tokens were not computed");
    assert!(
        preemptions > 100,
        "only {preemptions}: the pools are too large"
    );
}

#[test]
fn a_sequence_that_fills_the_pool_alone_ends_with_length() {
    let mut world = World::new(2, 100, 1);
    let grown = world.submit(request(vec![1; 20], 50));
    let large = world.submit(request(vec![1; 40], 50));
    world.run_until_idle();
    let end = Some(GenerateEvent::Finished {
        reason: FinishReason::Length,
    });
    // 32 tokens fill the pages; the 33rd was drawn from them.
    assert_eq!(world.clients[&grown].1.tokens.len(), 13);
    assert_eq!(world.clients[&grown].1.end, end);
    assert_eq!(world.clients[&large].1.end, end);
    world.check_empty();
}

#[test]
fn running_streams_keep_pace_beside_a_long_prompt() {
    let mut world = World::new(400, 4_000, 1);
    let stream = world.submit(request(vec![1, 2, 3], 50));
    world.step();
    world.submit(request((0..3_000).map(|t| t % VOCAB).collect(), 5));
    for made in 2..20 {
        let plan = world.plan().unwrap();
        assert_eq!(plan.entries.len(), 2);
        assert!(plan.rows() <= 1 + limits::PREFILL_BESIDE_DECODE_TOKENS);
        world.land();
        assert_eq!(world.clients[&stream].1.tokens.len(), made);
    }
}

#[test]
fn a_prompt_makes_steps_twice_as_long_as_streams_alone_and_many_prompts_longer() {
    let length = |tokens: usize| Duration::from_micros(2_000 + 1_000 * tokens as u64);
    let mut world = World::new(1_000, 4_000, 1);
    world.length = length;
    for stream in 0..8 {
        world.submit(request(vec![stream; 16], 1_000));
    }
    while world.batcher.stats().generated_tokens < 100 {
        world.step();
    }
    let rows = |world: &mut World| {
        let rows = (0..10).map(|_| {
            let rows = world.plan().unwrap().rows();
            world.land();
            rows
        });
        rows.max().unwrap()
    };
    assert_eq!(rows(&mut world), 8);
    let prompt = |world: &mut World| {
        world.submit(request((0..3_000).map(|t| t % VOCAB).collect(), 5));
    };
    prompt(&mut world);
    // Twice 10 ms are 18 rows. What is learnt of such steps stays near it.
    for _ in 0..5 {
        let rows = rows(&mut world);
        assert!((14..=19).contains(&rows), "{rows}");
    }
    (0..2).for_each(|_| prompt(&mut world));
    let three = rows(&mut world);
    assert!((30..=40).contains(&three), "{three}");
    (0..20).for_each(|_| prompt(&mut world));
    let many = rows(&mut world);
    assert!((75..=90).contains(&many), "{many}");
}

#[test]
fn a_long_prompt_does_not_hold_up_short_ones_and_goes_on() {
    let length = |tokens: usize| Duration::from_micros(2_000 + 1_000 * tokens as u64);
    let mut world = World::new(1_000, 4_000, 1);
    world.length = length;
    for stream in 0..8 {
        world.submit(request(vec![stream; 16], 1_000));
    }
    let prompt = |tokens: u32| (0..tokens).map(|t| (t * t) % VOCAB).collect::<Vec<_>>();
    let step = |world: &mut World| {
        world.plan().unwrap();
        world.land();
    };
    (0..100).for_each(|_| step(&mut world));
    let long = world.submit(request(prompt(3_000), 5));
    (0..10).for_each(|_| step(&mut world));
    let mut steps = 0;
    while world.clients[&long].1.tokens.is_empty() {
        // Some ten tokens a step are the prompts', and some twenty where there are two.
        let short = world.submit(request(prompt(30), 1));
        let mut waited = 0;
        while world.clients[&short].1.end.is_none() {
            step(&mut world);
            waited += 1;
            assert!(waited <= 6, "it waits for the long prompt");
        }
        steps += waited;
        assert!(steps < 600, "the long prompt gets its half");
    }
}

#[test]
fn preemption_takes_the_newest_and_the_oldest_never_waits() {
    // Each grows to 4 pages; 8 pages hold two of three.
    let mut world = World::new(8, 128, 1);
    let ids: Vec<_> = (0..3)
        .map(|i| world.submit(request(vec![i; 16], 48)))
        .collect();
    let mut oldest = 0;
    while world.clients[&ids[0]].1.end.is_none() {
        assert!(world.plan().is_some());
        world.land();
        let made = world.clients[&ids[0]].1.tokens.len();
        assert_eq!(made, oldest + 1, "the oldest makes a token each step");
        oldest = made;
    }
    assert!(world.batcher.stats().preemptions > 0);
    world.run_until_idle();
    for id in ids {
        world.check(id, 128);
    }
}

#[test]
fn a_pipeline_is_kept_full_and_shares_the_decodes() {
    let mut world = World::new(100, 400, 4);
    for i in 0..8 {
        world.submit(request(vec![i; 4], 40));
    }
    world.plan();
    assert!(world.plan().is_none(), "all prompts are in the first step");
    world.land();
    for _ in 0..4 {
        assert_eq!(world.plan().unwrap().entries.len(), 2);
    }
    assert!(world.plan().is_none(), "four steps are in flight");
    for _ in 0..20 {
        world.land();
        assert_eq!(world.plan().unwrap().entries.len(), 2);
    }
    // One long prompt alone: its chunks follow each other without waiting for results.
    let mut world = World::new(200, 3_000, 3);
    world.submit(request(vec![7; 1_500], 4));
    for _ in 0..3 {
        assert!(world.plan().is_some());
    }
    world.run_until_idle();
    world.check(SequenceId(0), 3_000);
}

#[test]
fn refusals_are_told() {
    let mut world = World::new(8, 64, 1);
    let failed = |world: &World, id| match world.clients[&id].1.end.clone() {
        Some(GenerateEvent::Failed { kind, .. }) => kind,
        other => panic!("{other:?}"),
    };
    for bad in [
        request(vec![], 1),
        request(vec![VOCAB], 1),
        request(vec![1; 65], 1),
    ] {
        let id = world.submit(bad);
        assert_eq!(failed(&world, id), FailureKind::Invalid);
    }
    let mut nan = request(vec![1], 1);
    nan.sampling.temperature = f32::NAN;
    let mut weightless = request(vec![1], 1);
    weightless.weight = 0;
    for bad in [nan, weightless] {
        let id = world.submit(bad);
        assert_eq!(failed(&world, id), FailureKind::Invalid);
    }

    for _ in 0..limits::WAITING_SEQUENCES_MAX {
        world.submit(request(vec![1], 1));
    }
    let id = world.submit(request(vec![1], 1));
    assert_eq!(failed(&world, id), FailureKind::Overloaded);
    world.batcher.fail_all(FailureKind::ReplicaLost, "gone");
    world.deliver();
    assert_eq!(failed(&world, SequenceId(5)), FailureKind::ReplicaLost);
    world.check_empty();
}

#[test]
fn results_that_were_not_asked_for_end_the_epoch() {
    let mut world = World::new(8, 64, 1);
    world.submit(request(vec![1, 2], 5));
    let plan = world.plan().unwrap();
    let token = |token| EntryResult {
        key: plan.entries[0].key,
        prompt: vec![],
        sampled: Sampled::Tokens(vec![Drawn {
            token,
            logprobs: None,
        }]),
    };
    let results = |results| StepResults { step: 0, results };
    let mut complete = |results| world.batcher.complete(results, world.now);
    let twice = complete(results(vec![token(1), token(2)]));
    assert!(twice.unwrap_err().0.contains("not asked for"));
    assert!(complete(results(vec![])).is_err(), "no step is out");
}

/// Runs one request to its end and gives the tokens it had not to compute.
fn cached(world: &mut World, tenant: u32, prompt: &[u32], context: usize) -> usize {
    let mut asked = request(prompt.to_vec(), 3);
    asked.tenant = TenantId(tenant);
    let id = world.submit(asked);
    world.run_until_idle();
    world.check(id, context);
    world.clients[&id].1.cached
}

#[test]
fn a_beginning_that_was_computed_is_not_computed_again() {
    let mut world = World::new(64, 512, 1);
    let prompt: Vec<u32> = (0..100).collect();
    assert_eq!(cached(&mut world, 1, &prompt, 512), 0);
    // All full pages; the last token is always computed, since the next comes of it.
    assert_eq!(cached(&mut world, 1, &prompt, 512), 96);
    assert_eq!(cached(&mut world, 1, &prompt[..96], 512), 80);
    assert_eq!(cached(&mut world, 1, &prompt[..97], 512), 96);
    let mut other = prompt.clone();
    other[40] += 1;
    assert_eq!(cached(&mut world, 1, &other, 512), 32);
    // What was generated is found too: a conversation goes on where it was.
    let mut talk = request(prompt[..90].to_vec(), 30);
    talk.tenant = TenantId(3);
    let id = world.submit(talk);
    world.run_until_idle();
    let whole = [&prompt[..90], &world.clients[&id].1.tokens, &[7; 9]].concat();
    // Of 120 tokens the last was never put into the cache: 119 of them are 7 pages.
    assert_eq!(cached(&mut world, 3, &whole, 512), 112);
    world.check_empty();
}

#[test]
fn two_at_once_with_one_beginning_share_it_from_the_second_step_on() {
    let mut world = World::new(64, 512, 1);
    let prompt: Vec<u32> = (0..64).collect();
    let first = world.submit(request(prompt.clone(), 8));
    world.plan();
    // Not found while the step that fills it is under way.
    let beside = world.submit(request([&prompt[..], &[1]].concat(), 8));
    assert!(world.plan().is_none(), "a step is in flight");
    world.land();
    world.run_until_idle();
    for id in [first, beside] {
        world.check(id, 512);
    }
    assert_eq!(world.clients[&beside].1.cached, 64);
    world.check_empty();
}

#[test]
fn nobody_is_spared_work_by_another_tenants_prompts() {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut world = World::new(256, 256, 1);
    let secret: Vec<u32> = (0..200).map(|_| random.next_u32() % VOCAB).collect();
    assert_eq!(cached(&mut world, 1, &secret, 256), 0);
    for attempt in 0..10_000u32 {
        // Another tenant each time, who knows any part of it, and goes on in any way.
        let known = 1 + random.next_u32() as usize % secret.len();
        let mut guess = secret[..known].to_vec();
        guess.extend((0..random.next_u32() % 20).map(|_| random.next_u32() % VOCAB));
        let mut asked = request(guess, 0);
        asked.max_tokens = 1;
        asked.tenant = TenantId(2 + attempt);
        let id = world.submit(asked);
        world.run_until_idle();
        let (_, client) = world.clients.remove(&id).expect("it ran");
        assert!(client.started);
        assert_eq!(client.cached, 0, "attempt {attempt}");
        if attempt % 10 == 0 {
            assert!(cached(&mut world, 1, &secret, 256) > 0, "it is still there");
        }
    }
}

#[test]
fn prompts_whose_scores_are_asked_for_are_computed() {
    let mut world = World::new(64, 512, 1);
    let prompt: Vec<u32> = (0..100).collect();
    cached(&mut world, 1, &prompt, 512);
    let mut scored = request(prompt, 3);
    scored.prompt_logprobs = Some(0);
    let id = world.submit(scored);
    world.run_until_idle();
    world.check(id, 512);
    assert_eq!(world.clients[&id].1.cached, 0);
}

#[test]
fn guesses_are_made_where_they_pay() {
    let steps = |drafts: u8, length: fn(usize) -> Duration| {
        let mut world = World::new(100, 512, 1);
        world.length = length;
        let mut asked = request(vec![2, 4, 6], 300);
        asked.sampling.drafts = drafts;
        // The other's prompt teaches what rows cost.
        let ids = [world.submit(asked), world.submit(request(vec![9; 40], 3))];
        world.run_until_idle();
        ids.iter().for_each(|id| world.check(*id, 512));
        world.check_empty();
        (world.batcher.stats().steps, world.guessed)
    };
    let flat = |_: usize| Duration::from_millis(5);
    let (without, guessed) = steps(0, flat);
    assert_eq!((without, guessed), (300, [0, 0]));
    // Of eleven tokens up to ten are easily guessed.
    let (with, guessed) = steps(8, flat);
    assert!(with < 200, "{with} steps, {guessed:?}");
    // Where a row costs as much as a token takes alone, none pays.
    let steep = |tokens: usize| Duration::from_millis(5 * tokens as u64);
    let (with, guessed) = steps(8, steep);
    assert!(with > 280 && guessed[1] < 10, "{with} steps, {guessed:?}");
}
