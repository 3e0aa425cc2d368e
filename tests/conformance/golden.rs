//! Teacher-forced scoring against float32 transformers, through `/v1/completions` with token
//! prompts, `echo`, `logprobs` and `max_tokens: 0`.

use crate::harness::Cluster;
use serde_json::{Value, json};

/// Where the reference's best token leads by this much, ours must be the same.
const MARGIN: f64 = 0.25;
/// Where the unsplit engine's best token leads by this much, a split's must be the same.
const SPLIT_MARGIN: f64 = 0.05;
const MEAN_LOGPROB_DIFFERENCE_MAX: f64 = 0.005;
const PERPLEXITY_RATIO_MAX: f64 = 1.001;

/// Our scores of one reference continuation, a value per position.
pub struct Scored {
    prompt: String,
    /// Best token's text.
    best: Vec<String>,
    /// Best less second-best logprob.
    margin: Vec<f64>,
}

fn lines() -> Vec<Value> {
    let text = include_str!("../golden/smollm2.jsonl");
    text.lines()
        .map(|l| serde_json::from_str(l).expect("the reference is JSON"))
        .collect()
}

fn ids(value: &Value) -> Vec<u64> {
    value
        .as_array()
        .expect("ids")
        .iter()
        .map(|v| v.as_u64().expect("an id"))
        .collect()
}

/// (logprob, best token's text, margin) of every token of `tokens` but the first.
fn score(cluster: &Cluster, tokens: &[u64]) -> Vec<(f64, String, f64)> {
    let answer = cluster.ask(
        "/v1/completions",
        &json!({
            "model": cluster.model(), "prompt": tokens, "max_tokens": 0, "echo": true,
            "logprobs": 2, "temperature": 0,
        }),
    );
    let logprobs = &answer["choices"][0]["logprobs"];
    let own = logprobs["token_logprobs"]
        .as_array()
        .expect("token_logprobs");
    let top = logprobs["top_logprobs"].as_array().expect("top_logprobs");
    assert_eq!(own.len(), tokens.len(), "one logprob per prompt token");
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    assert!(own[0].is_null(), "nothing predicts the first token");
    own.iter()
        .zip(top)
        .skip(1)
        .map(|(own, top)| {
            let mut best: Vec<(f64, &String)> = top
                .as_object()
                .expect("top_logprobs entry")
                .iter()
                .map(|(token, p)| (p.as_f64().expect("a logprob"), token))
                .collect();
            best.sort_by(|a, b| b.0.total_cmp(&a.0));
            assert!(best.len() >= 2, "two best tokens were asked for");
            let own = own.as_f64().expect("a logprob");
            (own, best[0].1.clone(), best[0].0 - best[1].0)
        })
        .collect()
}

/// Holds a cluster against the references and returns what it scored.
pub fn check(split: &str, cluster: &Cluster) -> Vec<Scored> {
    let mut differences = Vec::new();
    let mut scored = Vec::new();
    let mut wrong = Vec::new();
    let mut sure = 0;
    for line in lines() {
        let prompt = ids(&line["prompt_tokens"]);
        let tokens = ids(&line["tokens"]);
        let all: Vec<u64> = prompt.iter().chain(&tokens).copied().collect();
        let ours = &score(cluster, &all)[prompt.len() - 1..];
        let name = line["prompt"].as_str().unwrap_or("a chat").to_owned();
        for (step, (logprob, best, margin)) in ours.iter().enumerate() {
            let reference = line["logprobs"][step]
                .as_f64()
                .expect("a reference logprob");
            differences.push((logprob - reference).abs());
            if line["margins"][step].as_f64().expect("a margin") >= MARGIN {
                sure += 1;
                // The reference token is ours exactly if its logprob is the best one; ties in the
                // printed precision count as equal.
                let text = cluster_text(cluster, tokens[step]);
                if *best != text {
                    wrong.push(format!(
                        "{name:?} step {step}: {best:?}, not {text:?} ({margin})"
                    ));
                }
            }
        }
        scored.push(Scored {
            prompt: name,
            best: ours.iter().map(|o| o.1.clone()).collect(),
            margin: ours.iter().map(|o| o.2).collect(),
        });
    }
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    let ratio = perplexity_ratio(cluster);
    println!(
        "{split}: {sure} sure tokens, {} wrong; mean |logprob difference| {mean:.4}; \
         perplexity x{ratio:.4}",
        wrong.len()
    );
    assert!(sure > 200, "the references hold over 200 sure tokens");
    assert!(wrong.is_empty(), "{split}: {wrong:#?}");
    assert!(
        mean < MEAN_LOGPROB_DIFFERENCE_MAX,
        "{split}: mean difference {mean}"
    );
    assert!(
        (1.0 / PERPLEXITY_RATIO_MAX..PERPLEXITY_RATIO_MAX).contains(&ratio),
        "{split}: perplexity is {ratio} of the reference's"
    );
    scored
}

/// The text under which `logprobs` names a token.
fn cluster_text(cluster: &Cluster, id: u64) -> String {
    use std::collections::HashMap;
    use std::sync::Mutex;
    // The vocabulary is the model's, the same on every cluster.
    static TEXTS: Mutex<Option<HashMap<u64, String>>> = Mutex::new(None);
    let mut texts = TEXTS.lock().expect("no test panicked here");
    texts
        .get_or_insert_with(HashMap::new)
        .entry(id)
        .or_insert_with(|| {
            let answer = cluster.ask(
                "/v1/completions",
                &json!({
                    "model": cluster.model(), "prompt": [id], "max_tokens": 0, "echo": true,
                    "logprobs": 1,
                }),
            );
            answer["choices"][0]["logprobs"]["tokens"][0]
                .as_str()
                .expect("a token")
                .to_owned()
        })
        .clone()
}

fn perplexity_ratio(cluster: &Cluster) -> f64 {
    let reference: Value =
        serde_json::from_str(include_str!("../golden/smollm2-perplexity.json")).expect("JSON");
    let scores = score(cluster, &ids(&reference["tokens"]));
    let nll = -scores.iter().map(|s| s.0).sum::<f64>() / scores.len() as f64;
    nll.exp() / reference["ppl"].as_f64().expect("a perplexity")
}

/// A split picks the whole model's best token wherever that was clear.
pub fn agree(split: &str, whole: &[Scored], other: &[Scored]) {
    for (a, b) in whole.iter().zip(other) {
        for step in 0..a.best.len() {
            assert!(
                a.margin[step] < SPLIT_MARGIN || a.best[step] == b.best[step],
                "{split}, {:?} step {step}: {:?}, but {:?} unsplit (margin {})",
                a.prompt,
                b.best[step],
                a.best[step],
                a.margin[step]
            );
        }
    }
}
