//! Tenants in one batcher: their shares of it, who is turned away, and whose pages are taken.

use super::tests::{World, request};
use super::*;
use std::time::Duration;
use trireme_shared::ids::TenantId;
use trireme_shared::wire::generate::Priority;

fn of(tenant: u32, weight: u32, prompt: usize, max_tokens: u32) -> GenerateRequest {
    let mut made = request(vec![tenant; prompt], max_tokens);
    (made.tenant, made.weight) = (TenantId(tenant), weight);
    made
}

/// Tokens that a tenant's clients were given, and those of prompts that were begun.
fn served(world: &World, tenant: u32) -> usize {
    let clients = world.clients.values();
    let theirs =
        clients.filter(|(request, client)| request.tenant == TenantId(tenant) && client.started);
    theirs
        .map(|(request, client)| request.prompt.len() + client.tokens.len())
        .sum()
}

#[test]
fn backlogged_tenants_share_the_pages_by_weight() {
    // Pages for eight sequences of 64 tokens at a time.
    let mut world = World::new(32, 128, 2);
    for _ in 0..600 {
        world.submit(of(1, 1, 16, 48));
    }
    for _ in 0..600 {
        world.submit(of(2, 3, 16, 48));
    }
    let before = [served(&world, 1), served(&world, 2)];
    for _ in 0..8_000 {
        if world.plan().is_none() {
            world.land();
        }
    }
    let got = [1, 2].map(|t| served(&world, t) - before[t as usize - 1]);
    assert!(world.batcher.stats().waiting > 100, "both still wait");
    let longest = 64;
    // At most 32 run at once, a page each.
    let bound = 32 * longest + 32 * longest / 3;
    let apart = got[0].abs_diff(got[1] / 3);
    assert!(apart <= bound, "{got:?}");
    assert!(got[0] + got[1] > 5 * bound, "{got:?}");
    // Far nearer in fact.
    assert!(apart <= 8 * longest, "{got:?}");
}

#[test]
fn a_flood_does_not_keep_another_tenant_waiting() {
    let mut world = World::new(32, 128, 1);
    for _ in 0..500 {
        world.submit(of(1, 1, 16, 48));
    }
    for _ in 0..100 {
        world.step();
    }
    let theirs = world.submit(of(2, 1, 16, 8));
    let fresh = |id| !world.clients[&id].1.started;
    assert_eq!(world.batcher.waiting.next(fresh), Some(theirs));
    // It runs no later than all that had begun before it would have ended: at most 32, a page each.
    let mut steps = 0;
    while world.clients[&theirs].1.end.is_none() {
        world.step();
        steps += 1;
        assert!(steps < 32 * 64, "it waits for the flood");
    }
    world.check(theirs, 128);
}

#[test]
fn who_floods_the_waiting_room_is_turned_away_and_nobody_else() {
    let mut world = World::new(32, 128, 1);
    let ids: Vec<_> = (0..limits::WAITING_SEQUENCES_MAX)
        .map(|_| world.submit(of(1, 1, 16, 4)))
        .collect();
    let theirs = world.submit(of(2, 1, 16, 4));
    let newest = &world.clients[ids.last().unwrap()].1;
    assert!(matches!(
        newest.end,
        Some(GenerateEvent::Failed {
            kind: FailureKind::Overloaded,
            ..
        })
    ));
    assert_eq!(
        world.batcher.stats().waiting as usize,
        limits::WAITING_SEQUENCES_MAX
    );
    world.run_until_idle();
    world.check(theirs, 128);
    for id in &ids[..ids.len() - 1] {
        world.check(*id, 128);
    }
    world.check_empty();
}

#[test]
fn pages_are_taken_from_the_tenant_that_was_served_most() {
    // Each grows to 4 pages; 12 hold three of four.
    let mut world = World::new(12, 128, 1);
    let flood: Vec<_> = (0..3).map(|_| world.submit(of(1, 1, 16, 48))).collect();
    for _ in 0..10 {
        world.step();
    }
    let theirs = world.submit(of(2, 1, 16, 48));
    let mut made = 0;
    while world.clients[&theirs].1.end.is_none() {
        assert!(world.plan().is_some());
        world.land();
        let tokens = world.clients[&theirs].1.tokens.len();
        assert!(
            made == 0 || tokens == made + 1,
            "the newest, and never preempted"
        );
        made = tokens;
    }
    assert!(world.batcher.stats().preemptions > 0);
    world.run_until_idle();
    for id in flood.into_iter().chain([theirs]) {
        world.check(id, 128);
    }
    world.check_empty();
}

#[test]
fn what_is_computed_again_after_a_preemption_is_charged_once() {
    let mut world = World::new(8, 128, 1);
    for _ in 0..3 {
        world.submit(of(1, 1, 16, 48));
    }
    let others = world.submit(of(2, 1, 16, 110));
    while world.batcher.stats().preemptions < 3 {
        assert!(world.plan().is_some());
        world.land();
    }
    let all: Vec<_> = [1, 2].map(|t| served(&world, t)).into();
    let mut expected = WaitingRoom::new(9);
    for (tenant, tokens) in [1, 2].into_iter().zip(all) {
        expected.arrive(
            SequenceId(tenant.into()),
            TenantId(tenant),
            1,
            Priority::Normal,
        );
        expected.charge(TenantId(tenant), tokens);
    }
    for tenant in [1, 2].map(TenantId) {
        // The newest token of each running sequence went to its client and through no step.
        assert!(world.batcher.waiting.served(tenant) <= expected.served(tenant));
    }
    world.batcher.cancel(others);
    world.run_until_idle();
    world.check_empty();
}

/// Steps of a machine that is busy for 4 ms and 1.5 ms a token.
fn length(tokens: usize) -> Duration {
    Duration::from_micros(4_000 + 1_500 * tokens as u64)
}

/// Tokens that a tenant's clients got so far.
fn got(world: &World, tenant: u32) -> usize {
    let clients = world.clients.values();
    let theirs = clients.filter(|(request, _)| request.tenant == TenantId(tenant));
    theirs.map(|(_, client)| client.tokens.len()).sum()
}

#[test]
fn a_flood_slows_another_tenants_stream_to_its_share_and_no_further() {
    for (weight, share) in [(1, 2.0), (3, 4.0 / 3.0)] {
        let mut world = World::new(1_000, 512, 1);
        world.length = length;
        for _ in 0..64 {
            world.submit(of(1, 1, 16, 400));
        }
        let silent = |world: &World| world.clients.values().any(|(_, c)| c.tokens.is_empty());
        while silent(&world) {
            world.step();
        }
        let theirs = world.submit(of(2, weight, 16, 200));
        // Until it is known how long short steps take.
        while got(&world, 2) < 50 {
            world.step();
        }
        let (began, others) = (world.now, got(&world, 1));
        while world.clients[&theirs].1.end.is_none() {
            assert!(world.plan().is_some());
            world.land();
        }
        let took = (world.now - began).as_secs_f64();
        let alone = 150.0 * length(1).as_secs_f64();
        let slower = took / alone;
        assert!((0.9 * share..=1.1 * share).contains(&slower), "{slower}");
        // What is left of each step is the flood's.
        let fit = (share * 5.5 - 4.0) / 1.5 - 1.0;
        let others = (got(&world, 1) - others) as f64 / 150.0;
        assert!((0.8 * fit..=1.2 * fit).contains(&others), "{others}");
        world.run_until_idle();
        world.check(theirs, 512);
        world.check_empty();
    }
}

#[test]
fn prompts_of_a_tenant_that_gets_less_than_it_wants_are_not_kept_waiting_by_its_streams() {
    let mut world = World::new(1_000, 512, 1);
    world.length = length;
    for _ in 0..40 {
        world.submit(of(1, 1, 16, 480));
    }
    world.submit(of(2, 1, 16, 480));
    while got(&world, 2) < 50 {
        world.step();
    }
    let newest = world.submit(of(1, 1, 100, 4));
    let before = got(&world, 2);
    while world.clients[&newest].1.tokens.is_empty() {
        world.step();
    }
    // Some three tokens of a step are its tenant's, every other one of them the prompt's.
    let steps = got(&world, 2) - before;
    assert!((40..140).contains(&steps), "{steps}");
    world.run_until_idle();
    world.check_empty();
}

#[test]
fn room_is_made_for_a_tenant_that_holds_less_than_its_share() {
    // 8 sequences of up to 31 pages have begun and hold nearly all pages before long.
    let mut world = World::new(64, 512, 1);
    for _ in 0..20 {
        world.submit(of(1, 1, 16, 480));
    }
    while world.batcher.pool.available() > 4 {
        world.step();
    }
    let preempted = world.batcher.stats().preemptions;
    // A third of the pages is 21.
    world.submit(of(3, 1, 16, 480));
    let theirs = world.submit(of(2, 1, 300, 4));
    for _ in 0..4 {
        world.step();
    }
    assert!(world.clients[&theirs].1.started);
    let made = world.batcher.stats().preemptions - preempted;
    assert!((1..=20).contains(&made), "{made}");
    // Another would be more than its share.
    let more = world.submit(of(2, 1, 300, 4));
    world.step();
    assert!(!world.clients[&more].1.started);
    world.run_until_idle();
    for id in world.clients.keys() {
        world.check(*id, 512);
    }
    world.check_empty();
}

#[test]
fn room_for_sequences_is_shared_too() {
    let mut world = World::new(2_000, 512, 1);
    let most = limits::STEP_SEQUENCES_MAX;
    for _ in 0..most + 10 {
        world.submit(of(1, 1, 8, 100));
    }
    while world.batcher.stats().running < most as u32 {
        world.step();
    }
    let theirs = world.submit(of(2, 1, 8, 4));
    world.step();
    assert!(world.clients[&theirs].1.started);
    assert_eq!(world.batcher.stats().preemptions, 1);
    world.run_until_idle();
    for id in world.clients.keys() {
        world.check(*id, 512);
    }
    world.check_empty();
}

#[test]
fn two_floods_do_not_take_pages_from_each_other_in_turns() {
    let mut world = World::new(64, 512, 1);
    for tenant in [1, 2] {
        for _ in 0..30 {
            world.submit(of(tenant, tenant, 40, 100));
        }
    }
    world.run_until_idle();
    for id in world.clients.keys() {
        world.check(*id, 512);
    }
    // Of growing sequences that do not fit together; each is preempted twice at the most, about.
    let preempted = world.batcher.stats().preemptions;
    assert!(preempted <= 120, "{preempted}");
    world.check_empty();
}

#[test]
fn who_can_go_on_does_where_those_whose_turn_it_is_cannot() {
    let mut world = World::new(8, 128, 1);
    world.length = length;
    let held = world.submit(of(2, 3, 90, 20));
    let runs = world.submit(of(1, 1, 10, 20));
    while !(world.clients[&held].1.started && world.clients[&runs].1.started) {
        world.step();
    }
    // Its client is behind, and the pages that it holds are more than its tenant's share.
    world.batcher.pause(held, true);
    let waits = world.submit(of(2, 3, 1, 4));
    while world.clients[&runs].1.end.is_none() {
        // Of another's token, a third is its tenant's in each step.
        assert!(world.plan().is_some());
        world.land();
    }
    assert!(!world.clients[&waits].1.started);
    world.batcher.pause(held, false);
    world.run_until_idle();
    for id in [held, runs, waits] {
        world.check(id, 128);
    }
    world.check_empty();
}
