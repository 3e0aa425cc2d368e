//! Attention over pages on each instruction set this machine has, against plain f64 arithmetic, and its tasks.

use super::attention::Form;
use super::attention_tasks::{TASK_QUERIES_MAX, strip_queries, task_queries};
use super::tests::{assert_near, backends_with, to_bf16, uniform};
use super::*;
use crate::model::SequenceSlice;
use half::f16;
use trireme_shared::limits::PAGE_TOKENS;
use trireme_shared::model::random::SplitMix;
use trireme_shared::model::{ActivationFormat, KvFormat, Rope, RopeScaling, RopeStyle};

/// What placement counts on, where heads fill whole vectors.
#[test]
fn pages_are_as_large_as_their_format_says() {
    for (format, form) in [
        (KvFormat::F16, Form::Halves),
        (KvFormat::F16, Form::Tiles),
        (KvFormat::Int8, Form::Bytes),
    ] {
        for dim in [16, 64, 256] {
            let bytes = PAGE_TOKENS as u64 * format.token_bytes(dim);
            assert_eq!(attention::head_bytes(form, dim as usize) as u64, bytes);
        }
    }
}

/// Rotation and attention, one query at a time, in f64.
struct Reference {
    rope: Rope,
    heads: usize,
    group: usize,
    dim: usize,
    scale: f32,
    score_cap: Option<f32>,
    window: Option<usize>,
    /// Weights of the norms of query and key heads.
    norms: Option<[Vec<f32>; 2]>,
    /// How keys and values are rounded, if they are, and queries with them.
    kept: Option<Form>,
}

impl Reference {
    fn rotated(&self, head: &[f32], norm: usize, position: usize) -> Vec<f64> {
        let mut out: Vec<f64> = head.iter().map(|&v| f64::from(v)).collect();
        if let Some(norms) = &self.norms {
            let mean = out.iter().map(|v| v * v).sum::<f64>() / self.dim as f64;
            let factor = 1.0 / (mean + f64::from(HEAD_NORM_EPS)).sqrt();
            let weights = norms[norm].iter();
            let both = out.iter_mut().zip(weights);
            both.for_each(|(v, w)| *v *= factor * f64::from(*w));
        }
        let half = self.rope.dims as usize / 2;
        for pair in 0..half {
            let (a, b) = match self.rope.style {
                RopeStyle::Interleaved => (2 * pair, 2 * pair + 1),
                RopeStyle::Halves => (pair, pair + half),
            };
            let power = -2.0 * pair as f64 / f64::from(self.rope.dims);
            let (s, c) = (position as f64 * f64::from(self.rope.theta).powf(power)).sin_cos();
            (out[a], out[b]) = (out[a] * c - out[b] * s, out[a] * s + out[b] * c);
        }
        out
    }

    /// A key or a value as the cache holds it.
    fn kept(&self, numbers: Vec<f64>) -> Vec<f64> {
        let Some(form) = self.kept else {
            return numbers;
        };
        let most = numbers.iter().fold(0f64, |a, v| a.max(v.abs()));
        let numbers = numbers.into_iter();
        match form {
            Form::Halves => numbers.map(|v| f16::from_f64(v).to_f32().into()).collect(),
            Form::Bytes => numbers
                .map(|v| (v * 127.0 / most).round() * most / 127.0)
                .collect(),
            Form::Tiles => numbers.map(|v| to_bf16(v as f32).into()).collect(),
        }
    }

    /// As a query meets keys.
    fn met(&self, query: Vec<f64>) -> Vec<f64> {
        match self.kept {
            Some(Form::Tiles) => self.kept(query),
            _ => query,
        }
    }

    /// Output of the last of `rows` rows of q, k and v, which stand at positions 0, 1, ...
    fn last(&self, q: &[f32], k: &[f32], v: &[f32], rows: usize) -> Vec<f64> {
        let (kv_width, q_width) = (self.heads * self.dim, self.heads * self.group * self.dim);
        let mut out = Vec::new();
        for head in 0..self.heads * self.group {
            let at = (rows - 1) * q_width + head * self.dim;
            let query = self.met(self.rotated(&q[at..at + self.dim], 0, rows - 1));
            let place = |row: usize| row * kv_width + head / self.group * self.dim;
            let first = rows.saturating_sub(self.window.unwrap_or(rows));
            let scores: Vec<f64> = (0..rows)
                .map(|row| {
                    if row < first {
                        return 0.0;
                    }
                    let key = self.rotated(&k[place(row)..place(row) + self.dim], 1, row);
                    let key = self.kept(key);
                    let dot: f64 = query.iter().zip(&key).map(|(q, k)| q * k).sum();
                    let score = dot * f64::from(self.scale);
                    let cap = self.score_cap.map(f64::from);
                    cap.map_or(score, |cap| cap * (score / cap).tanh()).exp()
                })
                .collect();
            let sum: f64 = scores.iter().sum();
            let values: Vec<Vec<f64>> = (0..rows)
                .map(|row| v[place(row)..place(row) + self.dim].iter())
                .map(|value| self.kept(value.map(|&v| v.into()).collect()))
                .collect();
            out.extend((0..self.dim).map(|d| {
                let weighted = scores.iter().zip(&values);
                weighted.map(|(s, value)| s * value[d]).sum::<f64>() / sum
            }));
        }
        out
    }
}

const HEAD_NORM_EPS: f32 = 1e-5;

#[test]
fn attention_over_pages_of_long_short_and_resumed_sequences() {
    attention_over_pages(KvFormat::F16, ActivationFormat::Int16, 1e-3, 2e-3);
}

/// Chances are rounded to eight bits, too; and scores of some units make of such a rounding some hundredths.
#[test]
fn attention_over_pages_in_bf16() {
    attention_over_pages(KvFormat::F16, ActivationFormat::Bf16, 6e-3, 1e-1);
    attention_over_pages(KvFormat::Int8, ActivationFormat::Bf16, 1e-3, 5e-2);
}

/// Of keys and values rounded to 254 steps of their heads' ranges, the output is off by 5 % of its
/// range at most (scores of some units make it so much), and by no more than f16 would add to that rounding.
#[test]
fn attention_over_pages_of_bytes() {
    attention_over_pages(KvFormat::Int8, ActivationFormat::Int16, 1e-3, 5e-2);
}

/// `kernels` is how far the output may be from exact sums of what the cache holds, `all` from those of what
/// it was given.
fn attention_over_pages(format: KvFormat, activations: ActivationFormat, kernels: f64, all: f64) {
    let mut random = SplitMix(5);
    for mut cpu in backends_with(activations) {
        use RopeStyle::{Halves, Interleaved};
        // As if some matrix took what attention gives in bytes.
        cpu.quantised = true;
        // The window is narrower than a page, wider, all there is; tiles of many queries begin
        // with some that see pages the others do not.
        for (heads, group, dim, rope_dims, style, window, score_cap, has_norms) in [
            (1, 3, 64, 64, Interleaved, None, None, false),
            (2, 1, 16, 16, Halves, None, Some(2.0), true),
            (1, 8, 24, 16, Halves, Some(5), None, false),
            (3, 2, 7, 4, Interleaved, Some(1), None, true),
            (2, 1, 16, 16, Halves, Some(17), Some(2.0), false),
            (1, 1, 32, 32, Halves, Some(53), None, false),
            (1, 18, 32, 32, Halves, Some(17), Some(2.0), true),
        ] {
            let rope = Rope {
                theta: 100.0,
                dims: rope_dims,
                style,
                scaling: RopeScaling::None,
            };
            let norms = [0, 1].map(|_| uniform(&mut random, dim));
            let mut reference = Reference {
                rope,
                heads,
                group,
                dim,
                // Not what the dimension suggests.
                scale: 0.9 / (dim as f32).sqrt(),
                score_cap,
                window,
                norms: has_norms.then_some(norms),
                kept: None,
            };
            let shape = KvShape {
                layers: 2,
                pages: 16,
                heads,
                head_dim: dim,
                format,
            };
            let mut kv = cpu.kv(shape).unwrap();
            let tolerances = [(Some(kv.form()), kernels), (None, all)];
            let (q_width, kv_width) = (heads * group * dim, heads * dim);
            // Two sequences; the second step goes on with both, in chunks of their own.
            let lengths = [53usize, 19];
            let all: Vec<[Vec<f32>; 3]> = lengths
                .map(|n| {
                    // Large values make the softmax sharp and its running maximum move. No token is as
                    // large as the next.
                    let mut large = |width: usize| -> Vec<f32> {
                        uniform(&mut random, n * width)
                            .chunks(width)
                            .zip([3.0, 0.7, 1.6].into_iter().cycle())
                            .flat_map(|(row, size)| row.iter().map(move |v| v * size))
                            .collect()
                    };
                    [large(q_width), large(kv_width), large(kv_width)]
                })
                .into();
            let pages = [vec![9u32, 2, 15, 4], vec![0, 7]];
            for range in [[0usize..33, 0..1], [33..34, 1..19], [34..53, 19..19]] {
                let mut sequences = Vec::new();
                let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
                let (mut cosines, mut sines, mut first) = (Vec::new(), Vec::new(), 0);
                for (s, range) in range.iter().enumerate().filter(|(_, r)| !r.is_empty()) {
                    sequences.push(SequenceSlice {
                        first,
                        len: range.len() as u32,
                        context: range.start as u32,
                        pages: pages[s].clone(),
                    });
                    first += range.len() as u32;
                    q.extend(&all[s][0][range.start * q_width..range.end * q_width]);
                    k.extend(&all[s][1][range.start * kv_width..range.end * kv_width]);
                    v.extend(&all[s][2][range.start * kv_width..range.end * kv_width]);
                    for position in range.clone() {
                        for pair in 0..rope_dims / 2 {
                            let power = -2.0 * f64::from(pair) / f64::from(rope_dims);
                            let angle = position as f64 * 100f64.powf(power);
                            cosines.push(angle.cos() as f32);
                            sines.push(angle.sin() as f32);
                        }
                    }
                }
                let step = Step {
                    sequences: &sequences,
                    cosines: &cosines,
                    sines: &sines,
                    rope,
                    group,
                    scale: reference.scale,
                    score_cap,
                    window,
                };
                let norms = reference.norms.as_ref();
                let norms = norms.map(|[query, key]| HeadNorms {
                    query,
                    key,
                    eps: HEAD_NORM_EPS,
                });
                let (mut rows_q, mut rows_k, mut rows_v, mut out) = Default::default();
                cpu.upload(&q, q_width, &mut rows_q);
                cpu.upload(&k, kv_width, &mut rows_k);
                cpu.upload(&v, kv_width, &mut rows_v);
                cpu.rope_append(&step, norms, &mut rows_q, &rows_k, &rows_v, &mut kv, 1);
                cpu.attention(&step, &rows_q, &kv, 1, &mut out);
                assert_eq!(
                    out.is_quantised,
                    dim.is_multiple_of(BLOCK) && !cpu.multiplier.has_strips()
                );
                if out.is_quantised {
                    let mut again = CpuRows::default();
                    cpu.upload(&out.data, q_width, &mut again);
                    cpu.quantise_rows(&mut again);
                    assert!(out.bytes == again.bytes && out.lines == again.lines);
                    assert_eq!(
                        (
                            &out.scales,
                            &out.totals,
                            &out.scaled_totals,
                            &out.half_totals
                        ),
                        (
                            &again.scales,
                            &again.totals,
                            &again.scaled_totals,
                            &again.half_totals
                        ),
                    );
                }
                let mut got = out.data.chunks(q_width);
                for (s, range) in range.iter().enumerate() {
                    for position in range.clone() {
                        let [q, k, v] = &all[s];
                        let got = got.next().unwrap();
                        for (kept, tolerance) in tolerances {
                            reference.kept = kept;
                            let want = reference.last(q, k, v, position + 1);
                            let what = format!("{:?} dim {dim} seq {s} pos {position}", cpu.isa);
                            assert_near(got, &want, tolerance, &format!("{what} {kept:?}"));
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn tokens_a_query_may_not_see_never_matter() {
    for format in [KvFormat::F16, KvFormat::Int8] {
        for activations in [ActivationFormat::Int16, ActivationFormat::Bf16] {
            unseen_tokens_do_not_matter(format, activations);
        }
    }
}

fn unseen_tokens_do_not_matter(format: KvFormat, activations: ActivationFormat) {
    let mut cpu = Cpu::new(Isa::detect(), 1, activations).unwrap();
    let shape = KvShape {
        layers: 1,
        pages: 2,
        heads: 1,
        head_dim: 32,
        format,
    };
    let mut kv = cpu.kv(shape).unwrap();
    let rope = Rope {
        theta: 1.0,
        dims: 2,
        style: RopeStyle::Halves,
        scaling: RopeScaling::None,
    };
    let mut run = |values: &[f32]| {
        let tokens = values.len();
        let wide: Vec<f32> = values.iter().flat_map(|&v| [v; 32]).collect();
        let sequences = [SequenceSlice {
            first: 0,
            len: tokens as u32,
            context: 0,
            pages: vec![0, 1],
        }];
        let (ones, zeroes) = (vec![1.0; tokens], vec![0.0; tokens]);
        let step = Step {
            sequences: &sequences,
            cosines: &ones,
            sines: &zeroes,
            rope,
            group: 1,
            scale: 0.25,
            score_cap: None,
            window: None,
        };
        let (mut q, mut k, mut out) = Default::default();
        cpu.upload(&wide, 32, &mut q);
        cpu.upload(&wide, 32, &mut k);
        cpu.rope_append(&step, None, &mut q, &k, &k, &mut kv, 0);
        cpu.attention(&step, &q, &kv, 0, &mut out);
        out.data[..32].to_vec()
    };
    // Pages full of a former owner's infinities.
    run(&[f32::INFINITY; 2 * PAGE_TOKENS]);
    assert_near(&run(&[0.5]), &[0.5; 32], 1e-7, "alone");
    // The next token, in the same tile of queries, seen by the second query only.
    assert_eq!(run(&[0.0, 6e4]), [0.0; 32]);
    // A page that only the last queries of a tile see, and that they do not fill.
    let tile = run(&[0.5; PAGE_TOKENS + 4]);
    assert_near(&tile, &[0.5; 32], 1e-7, "first of a tile");
}

/// To the last bit, what a query in a window gets does not depend on the queries beside it.
#[test]
fn a_windowed_query_is_alone_in_its_tile_or_not() {
    let mut random = SplitMix(6);
    let (tokens, dim, window) = (75, 32, 9);
    let [q, k, v] = [0, 1, 2].map(|_| uniform(&mut random, tokens * dim));
    let (ones, zeroes) = (vec![1.0; tokens], vec![0.0; tokens]);
    let all = [ActivationFormat::Int16, ActivationFormat::Bf16];
    for mut cpu in all.into_iter().flat_map(backends_with) {
        let mut run = |chunk: usize, format: KvFormat| {
            let mut kv = cpu
                .kv(KvShape {
                    layers: 1,
                    pages: 8,
                    heads: 1,
                    head_dim: dim,
                    format,
                })
                .unwrap();
            let mut all = Vec::new();
            for first in (0..tokens).step_by(chunk) {
                let len = chunk.min(tokens - first);
                let sequences = [SequenceSlice {
                    first: 0,
                    len: len as u32,
                    context: first as u32,
                    pages: (0..8).rev().collect(),
                }];
                let step = Step {
                    sequences: &sequences,
                    cosines: &ones,
                    sines: &zeroes,
                    rope: Rope {
                        theta: 1.0,
                        dims: 2,
                        style: RopeStyle::Halves,
                        scaling: RopeScaling::None,
                    },
                    group: 1,
                    scale: 3.0,
                    score_cap: None,
                    window: Some(window),
                };
                let (mut rows_q, mut rows_k, mut rows_v, mut out) = Default::default();
                let rows = first * dim..(first + len) * dim;
                cpu.upload(&q[rows.clone()], dim, &mut rows_q);
                cpu.upload(&k[rows.clone()], dim, &mut rows_k);
                cpu.upload(&v[rows], dim, &mut rows_v);
                cpu.rope_append(&step, None, &mut rows_q, &rows_k, &rows_v, &mut kv, 0);
                cpu.attention(&step, &rows_q, &kv, 0, &mut out);
                all.extend_from_slice(&out.data);
            }
            all
        };
        for format in [KvFormat::F16, KvFormat::Int8] {
            let alone = run(1, format);
            for chunk in [3, 8, 30, tokens] {
                assert_eq!(run(chunk, format), alone, "{chunk} {format:?}");
            }
        }
    }
}

#[test]
fn attention_tasks_share_pages_between_queries_and_leave_no_thread_idle() {
    let size = |lens: &[u32], heads: usize, group: usize, threads: usize| {
        let sequences = lens.iter().map(|&len| SequenceSlice {
            first: 0,
            len,
            context: 0,
            pages: Vec::new(),
        });
        let sequences: Vec<_> = sequences.collect();
        let step = Step {
            sequences: &sequences,
            cosines: &[],
            sines: &[],
            rope: Rope {
                theta: 1.0,
                dims: 2,
                style: RopeStyle::Halves,
                scaling: RopeScaling::None,
            },
            group,
            scale: 1.0,
            score_cap: None,
            window: None,
        };
        let by_strips = strip_queries(&step, heads, threads);
        (task_queries(&step, heads, threads), by_strips)
    };
    // A head's queries together, though of three heads one thread has two.
    assert_eq!(size(&[1], 3, 3, 2), (3, 16));
    // One head's, apart.
    assert_eq!(size(&[1], 1, 8, 2).0, 4);
    assert_eq!(size(&[1], 3, 3, 8).0, 2);
    assert_eq!(size(&[60], 3, 3, 2).1, 64);
    let most = (TASK_QUERIES_MAX, attention_tiles::TASK_QUERIES_MAX);
    assert_eq!(size(&[512], 3, 3, 2), most);
}
