//! Greedy text of 64 tokens from 20 prompts: the same on every split, wherever it was clear.

use crate::harness::Cluster;
use serde_json::{Value, json};

const TOKENS: usize = 64;
/// Where the unsplit engine's best token led by less than this, a split may choose otherwise.
const MARGIN: f64 = 0.05;

const PROMPTS: [&str; 14] = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def quicksort(items):",
    "The three laws of thermodynamics are",
    "1, 1, 2, 3, 5, 8, 13,",
    "A recipe for bread: first,",
    "Dear Sir or Madam,",
    "The Roman Empire fell because",
    "import numpy as np\n",
    "Water boils at",
    "In 1969, 3 astronauts flew 384400 km to",
    "Le chat est assis sur",
    "The difference between a process and a thread is",
    "SELECT name, COUNT(*) FROM",
];

const QUESTIONS: [&str; 6] = [
    "What is the tallest mountain on Earth?",
    "Write a haiku about autumn.",
    "Explain photosynthesis to a child.",
    "List three prime numbers greater than 50.",
    "Who wrote Hamlet?",
    "How do I boil an egg?",
];

/// One greedy generation: each token's text and its lead over the runner-up.
pub struct Text {
    prompt: String,
    tokens: Vec<String>,
    margins: Vec<f64>,
}

/// Generates all twenty, four at a time, so that they share steps with others.
pub fn generate(cluster: &Cluster) -> Vec<Text> {
    let prompts: Vec<(bool, &str)> = PROMPTS
        .iter()
        .map(|p| (false, *p))
        .chain(QUESTIONS.iter().map(|q| (true, *q)))
        .collect();
    prompts
        .chunks(4)
        .flat_map(|group| {
            std::thread::scope(|scope| {
                let asked: Vec<_> = group
                    .iter()
                    .map(|&(chat, prompt)| scope.spawn(move || one(cluster, chat, prompt)))
                    .collect();
                asked
                    .into_iter()
                    .map(|a| a.join().expect("a generation"))
                    .collect::<Vec<_>>()
            })
        })
        .collect()
}

fn one(cluster: &Cluster, chat: bool, prompt: &str) -> Text {
    let (tokens, margins) = if chat {
        let answer = cluster.ask(
            "/v1/chat/completions",
            &json!({
                "model": cluster.model(), "messages": [{"role": "user", "content": prompt}],
                "max_tokens": TOKENS, "temperature": 0, "logprobs": true, "top_logprobs": 2,
            }),
        );
        let content = answer["choices"][0]["logprobs"]["content"]
            .as_array()
            .expect("content");
        content
            .iter()
            .map(|entry| {
                let top = entry["top_logprobs"].as_array().expect("top_logprobs");
                let p = |i: usize| top[i]["logprob"].as_f64().expect("a logprob");
                (
                    entry["token"].as_str().expect("a token").to_owned(),
                    p(0) - p(1),
                )
            })
            .unzip()
    } else {
        let answer = cluster.ask(
            "/v1/completions",
            &json!({
                "model": cluster.model(), "prompt": prompt, "max_tokens": TOKENS,
                "temperature": 0, "logprobs": 2,
            }),
        );
        let logprobs = &answer["choices"][0]["logprobs"];
        let tokens = logprobs["tokens"].as_array().expect("tokens");
        let top = logprobs["top_logprobs"].as_array().expect("top_logprobs");
        tokens
            .iter()
            .zip(top)
            .map(|(t, top)| (t.as_str().expect("text").into(), lead(top)))
            .unzip()
    };
    Text {
        prompt: prompt.to_owned(),
        tokens,
        margins,
    }
}

fn lead(top: &Value) -> f64 {
    let mut all: Vec<f64> = top
        .as_object()
        .expect("top_logprobs entry")
        .values()
        .map(|v| v.as_f64().expect("a logprob"))
        .collect();
    all.sort_by(|a, b| b.total_cmp(a));
    // Two tokens of the same text share one entry: then the lead is not known, and taken as none.
    if all.len() < 2 { 0.0 } else { all[0] - all[1] }
}

pub fn agree(split: &str, whole: &[Text], other: &[Text]) {
    assert_eq!(whole.len(), PROMPTS.len() + QUESTIONS.len());
    let mut same = 0;
    for (a, b) in whole.iter().zip(other) {
        assert!(
            !a.tokens.is_empty() && a.tokens.len() <= TOKENS,
            "{:?}",
            a.prompt
        );
        match a.tokens.iter().zip(&b.tokens).position(|(x, y)| x != y) {
            None => {
                assert_eq!(
                    a.tokens.len(),
                    b.tokens.len(),
                    "{split}: {:?} ends early",
                    a.prompt
                );
                same += 1;
            }
            Some(step) => assert!(
                a.margins[step] < MARGIN,
                "{split}, {:?}, token {step}: {:?}, but {:?} unsplit with a lead of {}",
                a.prompt,
                b.tokens[step],
                a.tokens[step],
                a.margins[step]
            ),
        }
    }
    println!(
        "{split}: {same} of {} greedy texts are the same to the last token",
        whole.len()
    );
}
