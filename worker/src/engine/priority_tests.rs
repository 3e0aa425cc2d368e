//! Priorities among one tenant's own sequences: who begins, whose prompt goes first, who has a token in a
//! step that is cut, whose pages are taken; and that another tenant notices nothing.

use super::tests::{World, request};
use super::*;
use std::time::Duration;
use trireme_shared::ids::TenantId;

fn of(tenant: u32, priority: Priority, prompt: usize, max_tokens: u32) -> GenerateRequest {
    // No beginning is another's.
    let token = 10 * tenant + priority as u32;
    let mut made = request(vec![token; prompt], max_tokens);
    (made.tenant, made.priority) = (TenantId(tenant), priority);
    made
}

fn made(world: &World, id: SequenceId) -> usize {
    world.clients[&id].1.tokens.len()
}

#[test]
fn the_higher_begins_first_and_another_tenants_turn_is_what_it_was() {
    // Pages for one at a time.
    let mut world = World::new(4, 64, 1);
    let first = world.submit(of(1, Priority::Normal, 32, 24));
    world.step();
    let ids = [Priority::Low, Priority::Normal, Priority::High]
        .map(|priority| world.submit(of(1, priority, 32, 24)));
    let theirs = world.submit(of(2, Priority::Low, 32, 24));
    let mut order = Vec::new();
    while order.len() < 5 {
        world.step();
        for id in [first, theirs].into_iter().chain(ids) {
            if world.clients[&id].1.started && !order.contains(&id) {
                order.push(id);
            }
        }
    }
    let [low, normal, high] = ids;
    // The other tenant was served nothing yet.
    assert_eq!(order[..2], [first, theirs]);
    assert_eq!(order[2..], [high, normal, low]);
}

#[test]
fn a_prompt_of_a_higher_priority_passes_longer_and_shorter_ones() {
    let mut world = World::new(1_000, 4_000, 1);
    world.length = |tokens| Duration::from_micros(2_000 + 1_000 * tokens as u64);
    for _ in 0..8 {
        world.submit(of(1, Priority::Normal, 16, 3_000));
    }
    for _ in 0..100 {
        world.step();
    }
    let low = world.submit(of(1, Priority::Low, 400, 4));
    world.step();
    let high = world.submit(of(1, Priority::High, 400, 4));
    let short = world.submit(of(1, Priority::Normal, 200, 4));
    while made(&world, high) == 0 {
        world.step();
    }
    assert_eq!((made(&world, low), made(&world, short)), (0, 0));
}

#[test]
fn of_a_tenant_that_is_cut_the_higher_goes_on_at_full_pace() {
    let mut world = World::new(1_000, 512, 1);
    world.length = |tokens| Duration::from_micros(2_000 + 1_000 * tokens as u64);
    let low: Vec<_> = (0..40)
        .map(|_| world.submit(of(1, Priority::Low, 16, 480)))
        .collect();
    let high = world.submit(of(1, Priority::High, 16, 200));
    let theirs = world.submit(of(2, Priority::Normal, 16, 480));
    while made(&world, theirs) < 50 || made(&world, high) == 0 {
        world.step();
    }
    let before = [high, theirs, low[0]].map(|id| made(&world, id));
    for _ in 0..50 {
        world.step();
    }
    let after = [high, theirs, low[0]].map(|id| made(&world, id));
    let [high, theirs, low] = [0, 1, 2].map(|i| after[i] - before[i]);
    assert!(high >= 49 && theirs >= 49, "{high}, {theirs}");
    assert!(low < 20, "{low}");
}

#[test]
fn pages_are_taken_from_the_lowest() {
    // Each grows to 4 pages; 10 pages hold two and a half. The oldest keeps its own whatever it is.
    let mut world = World::new(10, 128, 1);
    let ids = [
        Priority::Normal,
        Priority::Low,
        Priority::High,
        Priority::Normal,
    ]
    .map(|priority| world.submit(of(1, priority, 16, 48)));
    while world.batcher.stats().preemptions == 0 {
        assert!(world.plan().is_some());
        world.land();
    }
    let runs = ids.map(|id| world.batcher.running.contains(&id));
    assert_eq!(runs, [true, false, true, true]);
    world.run_until_idle();
    for id in ids {
        world.check(id, 128);
    }
    world.check_empty();
}
