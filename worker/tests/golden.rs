//! The real model against the reference of `tests/golden` (its README says how it was made).
//!
//! The model is fetched as `cluster up` fetches it, into the same cache.

use serde::Deserialize;
use std::path::Path;
use trireme_shared::model::{ActivationFormat, KvFormat, Manifest, Precision};
use trireme_shared::source::{ResolveOptions, resolve};
use trireme_worker::backend::Isa;
use trireme_worker::model::{Batch, Forward, RankModel, Runtime, SequenceSlice};
use trireme_worker::parallel::{Abort, Solo};

#[derive(Deserialize)]
struct Case {
    prompt_tokens: Vec<u32>,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    margins: Vec<f32>,
}

#[derive(Deserialize)]
struct Passage {
    tokens: Vec<u32>,
    ppl: f64,
}

fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden")
        .join(name);
    std::fs::read_to_string(path).unwrap()
}

/// Logits of positions `from..` of `tokens`, fed in chunks of odd sizes.
fn logits(model: &mut RankModel, tokens: &[u32], from: usize) -> Vec<Vec<f32>> {
    let vocab = model.config().vocab as usize;
    let mut out = Vec::new();
    let mut context = 0;
    for len in [5usize, 1, 12, 37].into_iter().cycle() {
        let len = len.min(tokens.len() - context);
        if len == 0 {
            return out;
        }
        let wanted = (context..context + len).filter(|&p| p >= from);
        let batch = Batch {
            tokens: tokens[context..context + len].to_vec(),
            sequences: vec![SequenceSlice {
                first: 0,
                len: len as u32,
                context: context as u32,
                // Pages in an order that is not memory's.
                pages: (0..64).rev().collect(),
            }],
            outputs: wanted.map(|p| (p - context) as u32).collect(),
        };
        match model.forward(&batch, None, &mut Solo).unwrap() {
            Forward::Logits(rows) => out.extend(rows.chunks(vocab).map(<[f32]>::to_vec)),
            Forward::Hidden(_) => panic!("one stage gives logits"),
        }
        context += len;
    }
    out
}

fn logprob(row: &[f32], token: u32) -> f64 {
    let top = row.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let sum: f64 = row.iter().map(|v| f64::from(v - top).exp()).sum();
    f64::from(row[token as usize] - top) - sum.ln()
}

fn best(row: &[f32]) -> u32 {
    (0..row.len())
        .max_by(|&a, &b| row[a].total_cmp(&row[b]))
        .unwrap() as u32
}

fn perplexity(model: &mut RankModel, tokens: &[u32]) -> f64 {
    let rows = logits(model, tokens, 0);
    let predicted = rows.iter().zip(&tokens[1..]);
    let loss: f64 = predicted.map(|(row, &next)| -logprob(row, next)).sum();
    (loss / (tokens.len() - 1) as f64).exp()
}

fn load(manifest: &Manifest, isa: Isa, precision: Precision) -> RankModel {
    let share = manifest.shares(&[vec![1]]).unwrap().remove(0);
    let runtime = Runtime {
        threads: 2,
        isa,
        kv_pages: 64,
        activations: precision.activations,
        kv: precision.kv,
    };
    let abort = Abort::default();
    RankModel::load(manifest, &share, &runtime, &|_, _| {}, &abort).unwrap()
}

/// What bytes may cost (`shared/golden`'s README): a per cent of perplexity.
#[test]
fn bytes_cost_the_real_model_less_than_a_per_cent_of_perplexity() {
    let model = resolve("smollm2", &ResolveOptions::default(), &|_| {}).unwrap();
    let manifest = Manifest::open(&model.path).unwrap();
    let passage: Passage = serde_json::from_str(&golden("smollm2-perplexity.json")).unwrap();
    let off = |isa: Isa, precision: Precision| {
        let mut model = load(&manifest, isa, precision);
        let off = perplexity(&mut model, &passage.tokens) / passage.ppl - 1.0;
        eprintln!("{isa:?} {precision:?}: perplexity off by {off:+.4}");
        off
    };
    let exact = Precision::default();
    let kv = Precision {
        kv: KvFormat::Int8,
        ..exact
    };
    let activations = Precision {
        activations: ActivationFormat::Int8,
        ..exact
    };
    let exact = off(Isa::detect(), exact);
    let paths = Isa::ALL.into_iter().filter(|isa| isa.available());
    let bf16 = Precision {
        activations: ActivationFormat::Bf16,
        ..Precision::default()
    };
    let cases = paths.flat_map(|isa| [(isa, activations), (isa, bf16)]);
    for (isa, precision) in cases.chain([(Isa::detect(), kv)]) {
        let off = off(isa, precision);
        assert!(off != exact && off.abs() < 0.01, "{isa:?} {precision:?}");
    }
}

#[test]
fn the_real_model_agrees_with_the_reference_on_every_isa() {
    let model = resolve("smollm2", &ResolveOptions::default(), &|_| {}).unwrap();
    let manifest = Manifest::open(&model.path).unwrap();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        let mut model = load(&manifest, isa, Precision::default());
        let (mut differences, mut count) = (0.0, 0);
        for (number, line) in golden("smollm2.jsonl").lines().enumerate() {
            let case: Case = serde_json::from_str(line).unwrap();
            let mut tokens = case.prompt_tokens.clone();
            tokens.extend(&case.tokens[..case.tokens.len() - 1]);
            let rows = logits(&mut model, &tokens, case.prompt_tokens.len() - 1);
            assert_eq!(rows.len(), case.tokens.len());
            for (at, row) in rows.iter().enumerate() {
                if case.margins[at] >= 0.25 {
                    assert_eq!(
                        best(row),
                        case.tokens[at],
                        "{isa:?} case {number} token {at}"
                    );
                }
                let got = logprob(row, case.tokens[at]);
                differences += (got - f64::from(case.logprobs[at])).abs();
                count += 1;
            }
        }
        let mean = differences / f64::from(count);
        assert!(mean < 0.005, "{isa:?}: mean logprob difference {mean}");

        let passage: Passage = serde_json::from_str(&golden("smollm2-perplexity.json")).unwrap();
        let perplexity = perplexity(&mut model, &passage.tokens);
        let off = (perplexity / passage.ppl - 1.0).abs();
        eprintln!("{isa:?}: mean logprob difference {mean:.4}, perplexity off by {off:.4}");
        assert!(
            off < 0.001,
            "{isa:?}: perplexity {perplexity}, not {}",
            passage.ppl
        );
    }
}
