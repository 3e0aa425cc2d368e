//! Tenants in one batcher: their shares of it, who is turned away, and whose pages are taken.

use super::tests::{World, request};
use super::*;
use trireme_shared::ids::TenantId;

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
        world.plan();
        world.land();
    }
    let theirs = world.submit(of(2, 1, 16, 8));
    let fresh = |id| !world.clients[&id].1.started;
    assert_eq!(world.batcher.waiting.next(fresh), Some(theirs));
    // It runs no later than all that had begun before it would have ended: at most 32, a page each.
    let mut steps = 0;
    while world.clients[&theirs].1.end.is_none() {
        world.plan();
        world.land();
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
        world.plan();
        world.land();
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
        expected.arrive(SequenceId(tenant.into()), TenantId(tenant), 1);
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
