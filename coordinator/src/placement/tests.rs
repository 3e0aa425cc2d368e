//! Plans as scenarios: workers and a wish go in; what comes out covers the model once, keeps stages
//! together, gives faster workers more, and says what is missing where nothing fits.

use super::*;
use std::collections::BTreeMap;
use trireme_shared::model::random::RandomModel;
use trireme_shared::model::{DType, KvFormat, Precision, Quantize};
use trireme_shared::plan::{LinkPolicy, ModelRef};

/// A tiny model: 3 layers, 3 KV heads.
pub(crate) fn manifest() -> Manifest {
    let dir = crate::scratch::Scratch::new();
    let path = dir.path().join("tiny.gguf");
    RandomModel::tiny(1).write_gguf(&path).unwrap();
    Manifest::open(&path).unwrap()
}

pub(crate) fn worker(id: u32, host: &str) -> Candidate {
    Candidate {
        worker: WorkerId(id),
        address: format!("127.0.0.1:{}", 9_000 + id),
        host: host.into(),
        threads: 1,
        thread_speed: 1,
        memory_bytes: 1 << 30,
    }
}

pub(crate) fn spec(tp: u16, pp: u16, replicas: u16) -> DeploymentSpec {
    DeploymentSpec {
        model: ModelRef {
            name: "tiny".into(),
            source: "tiny.gguf".into(),
            sha256: None,
        },
        tensor_parallel: tp,
        pipeline_parallel: pp,
        replicas,
        link: LinkPolicy::Auto,
        precision: Precision::default(),
    }
}

const D: DeploymentId = DeploymentId(1);

#[test]
fn every_split_covers_the_model_once() {
    let manifest = manifest();
    let layers = manifest.config.layers;
    for (tp, pp) in [(1, 1), (2, 1), (3, 1), (1, 3), (2, 2), (3, 3)] {
        let workers: Vec<_> = (1..=u32::from(tp * pp)).map(|i| worker(i, "a")).collect();
        let plan = &plan(&manifest, &spec(tp, pp, 1), D, &workers).unwrap()[0];
        assert_eq!(plan.ranks.len(), usize::from(tp * pp));
        // Each (layer, KV head) cell has exactly one owner.
        let mut owners: BTreeMap<(u32, u32), u32> = BTreeMap::new();
        for rank in &plan.ranks {
            for layer in rank.share.layers.range() {
                for head in rank.share.kv_heads.range() {
                    *owners.entry((layer as u32, head as u32)).or_default() += 1;
                }
            }
        }
        assert_eq!(owners.len() as u32, layers * manifest.config.kv_heads);
        assert!(owners.values().all(|n| *n == 1), "tp {tp} pp {pp}");
        let bytes: u64 = plan.ranks.iter().map(|r| r.weight_bytes).sum();
        assert!(bytes >= manifest.tensors.values().map(|t| t.bytes).sum());
        assert!(u64::from(plan.context) <= u64::from(plan.kv_pages) * 16);
    }
}

#[test]
fn the_order_of_workers_changes_nothing() {
    let manifest = manifest();
    let mut workers: Vec<_> = (1..=8)
        .map(|i| worker(i, ["a", "b", "c"][i as usize % 3]))
        .collect();
    workers[3].threads = 4;
    let first = plan(&manifest, &spec(2, 2, 2), D, &workers).unwrap();
    for turn in 1..8 {
        workers.rotate_left(turn);
        assert_eq!(plan(&manifest, &spec(2, 2, 2), D, &workers).unwrap(), first);
    }
    let mut used: Vec<_> = first
        .iter()
        .flat_map(|p| p.ranks.iter().map(|r| r.worker))
        .collect();
    used.sort_unstable();
    used.dedup();
    assert_eq!(used.len(), 8, "no worker runs two ranks");
}

#[test]
fn a_stage_stays_on_one_host_where_one_is_large_enough() {
    let manifest = manifest();
    let hosts = ["a", "b", "b", "c", "c", "c"];
    let workers: Vec<_> = (1..).zip(hosts).map(|(i, h)| worker(i, h)).collect();
    // Two stages of two: b and c hold one each; nothing of a is needed.
    let replica = &plan(&manifest, &spec(2, 2, 1), D, &workers).unwrap()[0];
    for stage in replica.ranks.chunks(2) {
        assert_eq!(stage[0].host, stage[1].host);
    }
    // Three ranks of one stage fit c alone, the smallest that is large enough.
    let replica = &plan(&manifest, &spec(3, 1, 1), D, &workers).unwrap()[0];
    assert!(replica.ranks.iter().all(|r| r.host == "c"));
    // One rank: the smallest host, so that larger ones stay whole.
    let replica = &plan(&manifest, &spec(1, 1, 1), D, &workers).unwrap()[0];
    assert_eq!(replica.ranks[0].host, "a");
}

#[test]
fn faster_workers_hold_more() {
    let manifest = manifest();
    let mut workers = vec![worker(1, "a"), worker(2, "a")];
    workers[1].threads = 2;
    let replica = &plan(&manifest, &spec(2, 1, 1), D, &workers).unwrap()[0];
    let heads = |id| {
        let mut ranks = replica.ranks.iter();
        let rank = ranks.find(|r| r.worker == WorkerId(id)).unwrap();
        rank.share.kv_heads.len()
    };
    assert_eq!((heads(1), heads(2)), (1, 2));
}

#[test]
fn refusals_say_what_is_missing() {
    let manifest = manifest();
    let workers = [worker(1, "a"), worker(2, "a"), worker(3, "a")];
    let says = |spec, workers: &[Candidate]| {
        let error = plan(&manifest, &spec, D, workers).unwrap_err();
        error.to_string()
    };
    let text = says(spec(2, 2, 1), &workers);
    assert!(text.contains("needs 1 more worker(s): 4 in all"), "{text}");
    let text = says(spec(4, 1, 1), &workers);
    assert!(text.contains("tp 4 x pp 1"), "{text}");
    assert!(text.contains("--tp 2 --pp 2"), "{text}");
    let text = says(spec(1, 4, 1), &workers);
    assert!(text.contains("cannot be split"), "{text}");
    let mut poor = workers.clone();
    poor[0].memory_bytes = 10_000_000;
    let text = says(spec(3, 1, 1), &poor);
    assert!(text.contains("on w1, which offers 10 MB"), "{text}");
    assert!(says(spec(0, 1, 1), &workers).contains("at least 1"));
}

#[test]
fn little_memory_shortens_the_context_and_never_takes_more_than_a_quarter() {
    let manifest = manifest();
    let full = manifest.config.context;
    let mut lone = [worker(1, "a")];
    let roomy = &plan(&manifest, &spec(1, 1, 1), D, &lone).unwrap()[0];
    assert_eq!(roomy.context, full);
    let share = &roomy.ranks[0].share;
    let page = memory::page_bytes(&manifest.config, KvFormat::F16, share);
    assert!(u64::from(roomy.kv_pages) * page <= (1 << 30) / 4);
    let contexts = u64::from(roomy.kv_pages) * 16 / u64::from(full);
    assert!(contexts <= 16);
    // Leave room for 20 pages beside the weights.
    let weights = roomy.ranks[0].weight_bytes;
    lone[0].memory_bytes = weights + weights / 8 + limits::RANK_WORKING_BYTES + 20 * page;
    let tight = &plan(&manifest, &spec(1, 1, 1), D, &lone).unwrap()[0];
    assert_eq!(tight.kv_pages, 20);
    assert_eq!(tight.context, full.min(20 * 16));
    // Of heads of 16: 64 bytes a token in f16, 40 in bytes with their scales.
    let mut small = spec(1, 1, 1);
    small.precision.kv = KvFormat::Int8;
    let small = &plan(&manifest, &small, D, &lone).unwrap()[0];
    assert_eq!(small.kv_pages, 20 * 64 / 40);
    assert_eq!(small.precision.kv, KvFormat::Int8);
}

/// A matrix is counted as what it is packed as, in bytes, in shares and in what is left for KV pages.
#[test]
fn quantised_weights_are_counted_as_they_are_packed() {
    let floats = manifest();
    let written = |dtype| {
        let dir = crate::scratch::Scratch::new();
        let path = dir.path().join("tiny.gguf");
        let model = RandomModel {
            dtype,
            embedding_dtype: DType::Q8_0,
            ..RandomModel::tiny(1)
        };
        model.write_gguf(&path).unwrap();
        Manifest::open(&path).unwrap()
    };
    for (quantize, dtype) in [(Quantize::Q8, DType::Q8_0), (Quantize::Q4, DType::Q4_1)] {
        let mut asked = spec(2, 1, 1);
        asked.precision.quantize = Some(quantize);
        // Room for the weights and some pages where they are quantised, none where they are not.
        let plain = spec(2, 1, 1);
        let mut workers = [worker(1, "a"), worker(2, "a")];
        workers[1].threads = 2;
        for worker in &mut workers {
            worker.memory_bytes = limits::RANK_WORKING_BYTES + 400_000;
        }
        let got = plan(&floats, &asked, D, &workers).unwrap();
        let want = plan(&written(dtype), &plain, D, &workers).unwrap();
        assert_eq!(got[0].precision, asked.precision);
        assert_eq!(got[0].ranks, want[0].ranks);
        assert_eq!(got[0].kv_pages, want[0].kv_pages);
        let refused = plan(&floats, &plain, D, &workers).unwrap_err();
        assert!(matches!(refused, PlanError::Memory { .. }), "{refused}");
    }
}
