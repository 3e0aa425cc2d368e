//! The sampler against a plain reference that sorts everything in f64.

use super::*;

/// A row of logits that depends on `seed` only, roughly normal with a heavy top.
fn row(vocab: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut unit = || (random.next_u32() >> 8) as f32 / (1u32 << 24) as f32;
    (0..vocab)
        .map(|_| (unit() + unit() + unit() + unit() - 2.0) * 6.0)
        .collect()
}

/// Probabilities after every rule, the plain way.
fn reference(logits: &[f32], sampling: &Sampling, generated: &HashMap<u32, u32>) -> Vec<f64> {
    let mut logits: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
    for &(token, bias) in &sampling.logit_bias {
        logits[token as usize] += f64::from(bias);
    }
    for (&token, &times) in generated {
        logits[token as usize] -= f64::from(sampling.presence_penalty)
            + f64::from(sampling.frequency_penalty) * f64::from(times);
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let max = logits[order[0]];
    let mut probabilities = vec![0.0; logits.len()];
    if sampling.temperature == 0.0 {
        probabilities[order[0]] = 1.0;
        return probabilities;
    }
    let weight = |id: usize| ((logits[id] - max) / f64::from(sampling.temperature)).exp();
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k as usize);
    }
    order.retain(|&id| weight(id) >= f64::from(sampling.min_p));
    let total: f64 = order.iter().map(|&id| weight(id)).sum();
    let mut mass = 0.0;
    let mut kept = 0;
    while kept < order.len() && (kept == 0 || mass < f64::from(sampling.top_p) * total) {
        mass += weight(order[kept]);
        kept += 1;
    }
    order.truncate(kept);
    for &id in &order {
        probabilities[id] = weight(id) / mass;
    }
    probabilities
}

/// The token the reference draws with the sampler's own random number, and how far that number
/// lies from the borders of the token's share.
fn reference_draw(probabilities: &[f64], uniform: f64) -> (u32, f64) {
    let mut below = 0.0;
    for (id, &p) in probabilities.iter().enumerate() {
        if p > 0.0 && uniform < below + p {
            return (id as u32, (uniform - below).min(below + p - uniform));
        }
        below += p;
    }
    let last = probabilities.iter().rposition(|&p| p > 0.0).unwrap();
    (last as u32, 0.0)
}

#[test]
fn draws_what_the_reference_draws() {
    let rules = [
        (1.0, 0, 0.0, 1.0),
        (0.7, 0, 0.0, 1.0),
        (1.3, 40, 0.0, 1.0),
        (1.0, 1000, 0.0, 0.9),
        (1.0, 0, 0.05, 1.0),
        (0.8, 50, 0.02, 0.95),
        (1.5, 0, 0.0, 0.999),
        (2.0, 0, 0.0, 0.01),
        (0.0, 0, 0.0, 1.0),
    ];
    let mut sampler = Sampler::default();
    let mut compared = 0;
    for (case, &(temperature, top_k, min_p, top_p)) in rules.iter().enumerate() {
        for round in 0..40u32 {
            let logits = row(3000, u64::from(round) + 1000 * case as u64);
            let sampling = Sampling {
                temperature,
                top_k,
                min_p,
                top_p,
                seed: 77 + u64::from(round),
                presence_penalty: if round % 2 == 0 { 0.5 } else { 0.0 },
                frequency_penalty: if round % 3 == 0 { 1.25 } else { 0.0 },
                logit_bias: if round % 4 == 0 {
                    vec![(3, 9.0), (17, -100.0)]
                } else {
                    vec![]
                },
                drafts: 0,
            };
            let generated = HashMap::from([(5, 2), (2999, 1), (3, 4)]);
            let got = sampler
                .sample(Candidates::All(&logits), &sampling, &generated, round)
                .unwrap();
            let probabilities = reference(&logits, &sampling, &generated);
            let (want, slack) = reference_draw(&probabilities, uniform(sampling.seed, round));
            // f32 weights move a share's borders by about 1e-6 of the whole.
            if slack > 1e-5 {
                assert_eq!(got, want, "case {case} round {round}");
                compared += 1;
            }
        }
    }
    assert!(compared > 320, "only {compared} draws were clear");
}

#[test]
fn frequencies_follow_probabilities() {
    let logits = [2.0, 1.0, 0.0, -1.0, 0.5, -0.5, 1.5, 0.25];
    let mut sampler = Sampler::default();
    for (temperature, top_p) in [(1.0, 1.0), (0.6, 0.97)] {
        let draws = 40_000u32;
        let mut counts = [0f64; 8];
        let sampling = Sampling {
            temperature,
            top_p,
            seed: 20_260_101,
            ..Sampling::default()
        };
        for index in 0..draws {
            let token = sampler.sample(Candidates::All(&logits), &sampling, &HashMap::new(), index);
            counts[token.unwrap() as usize] += 1.0;
        }
        let expected = reference(&logits, &sampling, &HashMap::new());
        let mut chi_square = 0.0;
        for (count, p) in counts.iter().zip(&expected) {
            if *p == 0.0 {
                assert_eq!(*count, 0.0);
            } else {
                let mean = p * f64::from(draws);
                chi_square += (count - mean).powi(2) / mean;
            }
        }
        // 7 degrees of freedom: 24.3 is exceeded once in a thousand seeds; the seed is fixed.
        assert!(chi_square < 24.3, "chi square {chi_square}");
    }
}

#[test]
fn greedy_takes_the_lowest_of_equals_and_no_rule_is_a_full_rule() {
    let mut sampler = Sampler::default();
    let greedy = Sampling::default();
    let none = HashMap::new();
    let tied = [1.0, 3.0, 3.0, f32::NAN, 3.0];
    assert_eq!(
        sampler.sample(Candidates::All(&tied), &greedy, &none, 0),
        Ok(1)
    );
    let nan = [f32::NAN, f32::NEG_INFINITY];
    assert_eq!(
        sampler.sample(Candidates::All(&nan), &greedy, &none, 0),
        Err(NotFinite)
    );
    assert_eq!(logprobs(&nan, 0, 2), Err(NotFinite));

    let logits = row(500, 9);
    let plain = Sampling {
        temperature: 1.0,
        seed: 5,
        ..Sampling::default()
    };
    let full = Sampling {
        top_p: 0.999_999_9,
        top_k: 500,
        ..plain.clone()
    };
    for index in 0..200 {
        assert_eq!(
            sampler.sample(Candidates::All(&logits), &plain, &none, index),
            sampler.sample(Candidates::All(&logits), &full, &none, index)
        );
    }
}

#[test]
fn a_resumed_sequence_draws_the_same() {
    let sampling = Sampling {
        temperature: 1.0,
        seed: 42,
        frequency_penalty: 0.5,
        ..Sampling::default()
    };
    let run = |from: u32, history: &[u32]| {
        let mut sampler = Sampler::default();
        let mut tokens = history.to_vec();
        for index in from..50 {
            let mut counts = HashMap::new();
            for &token in &tokens {
                *counts.entry(token).or_insert(0) += 1;
            }
            let logits = row(200, u64::from(index));
            tokens.push(
                sampler
                    .sample(Candidates::All(&logits), &sampling, &counts, index)
                    .unwrap(),
            );
        }
        tokens
    };
    let whole = run(0, &[]);
    assert_eq!(run(23, &whole[..23]), whole);
    let distinct: std::collections::HashSet<_> =
        (0..50).map(|i| uniform(42, i).to_bits()).collect();
    assert_eq!(distinct.len(), 50);
    assert_ne!(uniform(42, 0), uniform(43, 0));
}

#[test]
fn logprobs_are_of_the_raw_distribution() {
    let logits = row(49_152, 3);
    let got = logprobs(&logits, 777, 5).unwrap();
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    let want = |id: usize| f64::from(logits[id] - max) - sum.ln();
    assert!((f64::from(got.logprob) - want(777)).abs() < 1e-5);
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    assert_eq!(got.top.len(), 5);
    for (place, &(id, logprob)) in got.top.iter().enumerate() {
        assert_eq!(id as usize, order[place]);
        assert!((f64::from(logprob) - want(order[place])).abs() < 1e-5);
    }
    assert!(logprobs(&logits, 777, 0).unwrap().top.is_empty());
}

#[test]
fn the_exponential_is_close() {
    for step in 0..870_000 {
        let x = -(step as f32) / 10_000.0;
        let want = f64::from(x).exp();
        let error = (f64::from(exp(x)) - want).abs() / want;
        assert!(error < 4e-7, "exp({x}) is off by {error}");
    }
    assert_eq!(exp(0.0), 1.0);
    assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(exp(f32::NAN), 0.0);
}
