//! Units of uneven plans, and of a sequence that goes on elsewhere.

use super::*;
use trireme_shared::ids::{DeploymentId, Epoch, Rank, Replica, Stage};
use trireme_shared::model::{Precision, RankShare};
use trireme_shared::plan::{LinkPolicy, ModelRef, RankPlacement};

/// Stages of (layers, ranks of (worker, KV heads, FFN columns)).
type Split = [(u32, Vec<(u32, u32, u32)>)];

fn plan(split: &Split) -> ReplicaPlan {
    let mut ranks = Vec::new();
    let mut layer = 0;
    for (stage, (layers, parts)) in split.iter().enumerate() {
        let (mut head, mut column) = (0, 0);
        for (rank, (worker, heads, columns)) in parts.iter().enumerate() {
            ranks.push(RankPlacement {
                share: RankShare {
                    stage: Stage(stage as u16),
                    rank: Rank(rank as u16),
                    stages: split.len() as u16,
                    ranks: parts.len() as u16,
                    layers: Span::new(layer, layer + layers),
                    kv_heads: Span::new(head, head + heads),
                    ffn: Span::new(column, column + columns),
                    vocab: Span::new(0, 1),
                },
                worker: WorkerId(*worker),
                address: String::new(),
                host: String::new(),
                weight_bytes: 0,
            });
            head += heads;
            column += columns;
        }
        layer += layers;
    }
    ReplicaPlan {
        deployment: DeploymentId(1),
        replica: Replica(0),
        epoch: Epoch(1),
        model: ModelRef {
            name: "m".into(),
            source: "m".into(),
            sha256: None,
        },
        tensor_parallel: split[0].1.len() as u16,
        pipeline_parallel: split.len() as u16,
        link: LinkPolicy::Auto,
        precision: Precision::default(),
        ranks,
        kv_pages: 1,
        context: 1,
        nonce: [0; 16],
    }
}

/// Workers below 10 are the platform's own, the tens are one provider's.
fn provider(worker: WorkerId) -> Option<String> {
    (worker.0 >= 10).then(|| format!("p{}", worker.0 / 10))
}

fn units(split: &Split) -> TokenUnits {
    TokenUnits::of(&plan(split), provider)
}

fn work(provider: Option<&str>, units: u64) -> Work {
    Work {
        provider: provider.map(str::to_owned),
        units,
    }
}

#[test]
fn a_rank_has_its_layers_times_the_mean_of_its_shares() {
    // Three heads in four and half of the columns; then one in four and the other half.
    let units = units(&[(8, vec![(10, 3, 500), (20, 1, 500)])]);
    let log = WorkLog::default();
    log.add(&units, 1);
    assert_eq!(
        log.so_far(),
        [
            work(Some("p1"), 8 * LAYER_UNITS * 5 / 8),
            work(Some("p2"), 8 * LAYER_UNITS * 3 / 8),
        ]
    );
}

#[test]
fn every_split_of_a_model_is_the_same_work_in_all() {
    let splits: [&Split; 4] = [
        &[(30, vec![(10, 3, 1536)])],
        &[(30, vec![(1, 2, 1024), (10, 1, 512)])],
        &[(30, vec![(1, 1, 100), (10, 1, 700), (11, 1, 736)])],
        &[
            (17, vec![(1, 2, 1000), (20, 1, 536)]),
            (13, vec![(10, 1, 536), (11, 2, 1000)]),
        ],
    ];
    for split in splits {
        let sum: u64 = units(split).0.values().sum();
        assert_eq!(sum, 30 * LAYER_UNITS, "{split:?}");
    }
}

#[test]
fn what_is_computed_again_elsewhere_is_work_again() {
    let log = WorkLog::default();
    let mut first = Tally::new(log.clone(), units(&[(4, vec![(10, 1, 1)])]), 100, 0);
    first.started(60);
    first.started(0);
    for _ in 0..7 {
        first.token();
    }
    // It fails; the other replica computes the prompt and the seven tokens, and makes three more.
    let other = units(&[(3, vec![(1, 1, 1)]), (1, vec![(20, 1, 1)])]);
    let mut second = Tally::new(log.clone(), other, 100, 7);
    second.started(0);
    for _ in 0..3 {
        second.token();
    }
    assert_eq!(
        log.so_far(),
        [
            work(None, 3 * 110 * LAYER_UNITS),
            work(Some("p1"), 4 * 47 * LAYER_UNITS),
            work(Some("p2"), 110 * LAYER_UNITS),
        ]
    );
}

#[test]
fn a_driver_that_never_started_did_nothing() {
    let log = WorkLog::default();
    let tally = Tally::new(log.clone(), units(&[(4, vec![(10, 1, 1)])]), 100, 9);
    drop(tally);
    assert!(log.so_far().is_empty());
}

#[test]
fn the_first_providers_of_many_keep_their_sums() {
    let log = WorkLog::default();
    let most = limits::REQUEST_PROVIDERS_MAX as u64;
    for provider in (0..2 * most).rev() {
        let name = Some(format!("p{provider:03}"));
        log.add(&TokenUnits([(name, 1)].into()), provider + 1);
    }
    let kept = log.so_far();
    assert_eq!(kept.len() as u64, most);
    for (number, work) in kept.iter().enumerate() {
        assert_eq!(work.units, number as u64 + 1);
    }
}
