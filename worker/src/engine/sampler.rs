//! From one row of logits to a token.
//!
//! Order, as OpenAI's API and vLLM have it: log-probabilities are taken from the raw logits; then
//! `logit_bias`, then presence and frequency penalties over generated tokens, then temperature,
//! `top_k`, `min_p`, `top_p`, then the draw. Temperature 0 takes the largest logit, ties to the
//! lowest id. The draw's random number depends on nothing but (seed, index), so a sequence that is
//! resumed elsewhere draws what it would have drawn here. Pure; called by the sampling rank.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::HashMap;
use trireme_shared::limits;
use trireme_shared::wire::generate::{Sampling, TokenLogprobs};

/// The logits hold no number to draw from: the rank computed nonsense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model's logits are not numbers")]
pub struct NotFinite;

/// What a token is drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Candidates<'a> {
    /// A logit of every token of the vocabulary.
    All(&'a [f32]),
    /// Of tokens `ids`, ascending: at least the `top_k` largest (with greedy sampling, the largest),
    /// which neither bias nor penalty would change.
    Largest { logits: &'a [f32], ids: &'a [u32] },
}

/// Draws tokens; owns its scratch memory, so that a draw allocates nothing large.
#[derive(Default)]
pub struct Sampler {
    adjusted: Vec<f32>,
    weights: Vec<f32>,
    candidates: Vec<u32>,
}

impl Sampler {
    /// The token at `index` of a generation, from its logits and the tokens `generated` so far with
    /// their counts.
    pub fn sample(
        &mut self,
        candidates: Candidates<'_>,
        sampling: &Sampling,
        generated: &HashMap<u32, u32>,
        index: u32,
    ) -> Result<u32, NotFinite> {
        let logits = match candidates {
            Candidates::All(logits) => logits,
            Candidates::Largest { logits, ids } => {
                let (weights, kept) = (&mut self.weights, &mut self.candidates);
                let place = draw(logits, sampling, index, weights, kept)?;
                return Ok(ids[place as usize]);
            }
        };
        let penalised = !generated.is_empty() && wants_history(sampling);
        if sampling.logit_bias.is_empty() && !penalised {
            return draw(
                logits,
                sampling,
                index,
                &mut self.weights,
                &mut self.candidates,
            );
        }
        self.adjusted.clear();
        self.adjusted.extend_from_slice(logits);
        for &(token, bias) in &sampling.logit_bias {
            if let Some(logit) = self.adjusted.get_mut(token as usize) {
                *logit += bias;
            }
        }
        if penalised {
            for (&token, &times) in generated {
                if let Some(logit) = self.adjusted.get_mut(token as usize) {
                    *logit -= sampling.presence_penalty + sampling.frequency_penalty * times as f32;
                }
            }
        }
        draw(
            &self.adjusted,
            sampling,
            index,
            &mut self.weights,
            &mut self.candidates,
        )
    }
}

/// Whether the largest logit is taken. The inverse of a denormal temperature overflows: greedy too.
pub fn is_greedy(sampling: &Sampling) -> bool {
    let inverse = 1.0 / sampling.temperature;
    sampling.temperature <= 0.0 || !inverse.is_finite() || sampling.top_k == 1
}

/// Whether drawing needs to know what was generated before.
pub fn wants_history(sampling: &Sampling) -> bool {
    sampling.frequency_penalty != 0.0 || sampling.presence_penalty != 0.0
}

/// The log-probability of `token` and of the `top` best tokens under the raw logits.
pub fn logprobs(logits: &[f32], token: u32, top: u8) -> Result<TokenLogprobs, NotFinite> {
    let best = best(logits, usize::from(top.min(limits::TOP_LOGPROBS_MAX)));
    let (_, max) = argmax(logits)?;
    let normaliser = f64::from(max) + exp_sum(logits, max).ln();
    let logprob = |logit: f32| (f64::from(logit) - normaliser) as f32;
    Ok(TokenLogprobs {
        token,
        logprob: logits
            .get(token as usize)
            .map_or(f32::NEG_INFINITY, |&logit| logprob(logit)),
        top: best.into_iter().map(|(id, l)| (id, logprob(l))).collect(),
    })
}

/// A number in [0, 1) that depends on the seed and the index only: block `index` of the ChaCha8
/// stream whose key is the seed.
fn uniform(seed: u64, index: u32) -> f64 {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..24].copy_from_slice(b"trireme sampling");
    let mut random = ChaCha8Rng::from_seed(key);
    random.set_word_pos(u128::from(index) * 16);
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Elements that the row's scans look at together.
const BLOCK: usize = 64;

/// Largest logit and its lowest id. NaN never wins.
fn argmax(logits: &[f32]) -> Result<(u32, f32), NotFinite> {
    let mut max = f32::NEG_INFINITY;
    let mut start = 0;
    for (number, block) in logits.chunks(BLOCK).enumerate() {
        let largest = block_max(block);
        if largest > max {
            (max, start) = (largest, number * BLOCK);
        }
    }
    if !max.is_finite() {
        return Err(NotFinite);
    }
    let place = logits[start..].iter().position(|&l| l == max);
    Ok(((start + place.ok_or(NotFinite)?) as u32, max))
}

/// The `count` largest logits, largest first, ties to the lower id; fewer, where fewer are numbers.
pub(super) fn best(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    let mut floor = f32::NEG_INFINITY;
    for (number, block) in logits.chunks(BLOCK).enumerate() {
        // Nearly every block holds nothing better than what was found.
        if count == 0 || block_max(block) <= floor {
            continue;
        }
        for (place, &logit) in block.iter().enumerate() {
            if logit > floor {
                let rank = best.partition_point(|&(_, l)| l >= logit);
                best.insert(rank, ((number * BLOCK + place) as u32, logit));
                best.truncate(count);
                if best.len() == count {
                    floor = best[count - 1].1;
                }
            }
        }
    }
    best
}

/// In lanes, because a fold in order does not vectorise.
fn block_max(block: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let mut chunks = block.chunks_exact(16);
    let larger = |m: &mut f32, l: f32| *m = if l > *m { l } else { *m };
    for chunk in &mut chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            larger(lane, logit);
        }
    }
    for &logit in chunks.remainder() {
        larger(&mut lanes[0], logit);
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// In lanes, like `block_max`.
fn block_sum(block: &[f32]) -> f64 {
    let mut lanes = [0f32; 16];
    let mut chunks = block.chunks_exact(16);
    for chunk in &mut chunks {
        for (lane, &weight) in lanes.iter_mut().zip(chunk) {
            *lane += weight;
        }
    }
    f64::from(lanes.iter().sum::<f32>() + chunks.remainder().iter().sum::<f32>())
}

fn draw(
    logits: &[f32],
    sampling: &Sampling,
    index: u32,
    weights: &mut Vec<f32>,
    candidates: &mut Vec<u32>,
) -> Result<u32, NotFinite> {
    let (greedy, max) = argmax(logits)?;
    if is_greedy(sampling) {
        return Ok(greedy);
    }
    let inverse = 1.0 / sampling.temperature;
    weights.clear();
    weights.extend(logits.iter().map(|&logit| weight(logit, max, inverse)));
    let uniform = uniform(sampling.seed, index);

    let all_kept = sampling.top_k == 0 || sampling.top_k as usize >= logits.len();
    if all_kept && sampling.min_p <= 0.0 && sampling.top_p >= 1.0 {
        return Ok(walk_all(weights, uniform).unwrap_or(greedy));
    }
    keep(logits, weights, sampling, candidates);
    let total: f64 = candidates
        .iter()
        .map(|&id| f64::from(weights[id as usize]))
        .sum();
    let mut left = uniform * total;
    for &id in candidates.iter() {
        left -= f64::from(weights[id as usize]);
        if left < 0.0 {
            return Ok(id);
        }
    }
    // Rounding may leave a rest; it belongs to the last token.
    Ok(candidates.last().copied().unwrap_or(greedy))
}

/// Draws among all tokens in the order of their ids: a block's sum first, its members second.
fn walk_all(weights: &[f32], uniform: f64) -> Option<u32> {
    let total: f64 = weights.chunks(BLOCK).map(block_sum).sum();
    let mut left = uniform * total;
    let mut last = None;
    for (number, block) in weights.chunks(BLOCK).enumerate() {
        let block_sum = block_sum(block);
        if left >= block_sum {
            left -= block_sum;
            continue;
        }
        for (place, &weight) in block.iter().enumerate() {
            if weight > 0.0 {
                last = Some((number * BLOCK + place) as u32);
                left -= f64::from(weight);
                if left < 0.0 {
                    return last;
                }
            }
        }
    }
    last.or_else(|| weights.iter().rposition(|&w| w > 0.0).map(|id| id as u32))
}

/// Leaves in `candidates`, ascending, the ids that `top_k`, `min_p` and `top_p` keep.
///
/// All three keep a prefix of the tokens ordered by logit. A histogram of the weights finds, in one
/// pass, a weight below which nothing can be kept, so that only a few tokens are ever compared.
fn keep(logits: &[f32], weights: &[f32], sampling: &Sampling, candidates: &mut Vec<u32>) {
    let by_logit = |&a: &u32, &b: &u32| {
        logits[b as usize]
            .total_cmp(&logits[a as usize])
            .then(a.cmp(&b))
    };
    let top_k = match sampling.top_k {
        0 => usize::MAX,
        count => count as usize,
    };
    let top_p = f64::from(sampling.top_p.max(0.0));
    // The best token weighs 1, so `min_p` compares with weights directly.
    let lowest = sampling.min_p.max(f32::MIN_POSITIVE);
    let histogram = Histogram::of(weights, lowest);
    let mut total = histogram.mass();
    let floor = if top_k == usize::MAX {
        histogram.floor(top_k, top_p * total)
    } else {
        histogram.floor(top_k, f64::INFINITY)
    };
    let floor = floor.max(lowest);
    candidates.clear();
    candidates.extend((0..weights.len() as u32).filter(|&id| weights[id as usize] >= floor));
    if top_k < candidates.len() {
        candidates.select_nth_unstable_by(top_k - 1, by_logit);
        candidates.truncate(top_k);
    }
    if top_p < 1.0 {
        let weight = |&id: &u32| f64::from(weights[id as usize]);
        if top_k != usize::MAX {
            total = candidates.iter().map(weight).sum();
        }
        candidates.sort_unstable_by(by_logit);
        let mut mass = 0.0;
        let mut kept = 0;
        while kept < candidates.len() && (kept == 0 || mass < top_p * total) {
            mass += weight(&candidates[kept]);
            kept += 1;
        }
        candidates.truncate(kept);
        candidates.sort_unstable();
    } else if top_k != usize::MAX {
        candidates.sort_unstable();
    }
}

/// How many weights, and how much of them, lie in each quarter of an octave below 1.
struct Histogram {
    counts: [u32; Self::BUCKETS],
    masses: [f64; Self::BUCKETS],
}

impl Histogram {
    /// A weight's exponent (at most 127, that of 1) and the first two bits of its mantissa.
    const BUCKETS: usize = 128 * 4;
    const SHIFT: u32 = 21;

    /// Of the weights not below `lowest`, which is positive.
    fn of(weights: &[f32], lowest: f32) -> Self {
        let mut histogram = Self {
            counts: [0; Self::BUCKETS],
            masses: [0.0; Self::BUCKETS],
        };
        for &weight in weights {
            if weight >= lowest {
                let bucket = (weight.to_bits() >> Self::SHIFT) as usize;
                let bucket = bucket.min(Self::BUCKETS - 1);
                histogram.counts[bucket] += 1;
                histogram.masses[bucket] += f64::from(weight);
            }
        }
        histogram
    }

    fn mass(&self) -> f64 {
        self.masses.iter().sum()
    }

    /// The largest bucket edge such that the weights above it are `count` or make up `mass`.
    fn floor(&self, count: usize, mass: f64) -> f32 {
        let (mut counted, mut massed) = (0, 0.0);
        for bucket in (0..Self::BUCKETS).rev() {
            counted += self.counts[bucket] as usize;
            massed += self.masses[bucket];
            if counted >= count || massed >= mass {
                return f32::from_bits((bucket as u32) << Self::SHIFT);
            }
        }
        0.0
    }
}

/// `e^((logit - max) / temperature)`, 0 for NaN.
#[inline]
fn weight(logit: f32, max: f32, inverse_temperature: f32) -> f32 {
    exp((logit - max) * inverse_temperature)
}

/// Sum of the weights, without storing them.
fn exp_sum(logits: &[f32], max: f32) -> f64 {
    let mut weights = [0f32; BLOCK];
    logits
        .chunks(BLOCK)
        .map(|block| {
            for (out, &logit) in weights.iter_mut().zip(block) {
                *out = weight(logit, max, 1.0);
            }
            block_sum(&weights[..block.len()])
        })
        .sum()
}

/// e^x for x <= 0, within 4e-7 of the true value relatively; 0 below -87 and for NaN. Branch-free,
/// so that the compiler vectorises it: a row has 49,152 of them and libm takes 5 ns for each.
///
/// Method: x = n ln 2 + r with |r| <= ln 2 / 2; Taylor's polynomial of degree 7 for e^r; n goes
/// into the exponent bits. ln 2 is taken in two parts so that r is exact (Cody and Waite, 1980).
#[inline]
fn exp(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it leaves the nearest integer in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    let inside = x > -87.0;
    let x = if inside { x } else { -87.0 };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let mut p = 1.0 / 5040.0;
    for c in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = p * r + c;
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    let scaled = f32::from_bits(p.to_bits().wrapping_add(exponent << 23));
    if inside { scaled } else { 0.0 }
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
