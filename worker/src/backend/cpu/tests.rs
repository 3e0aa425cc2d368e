//! Each kernel on each instruction set this machine has, against plain f64 arithmetic.

use super::*;
use crate::backend::cpu::pack::Format;
use crate::backend::cpu::rows::{BlockBytes, Line};
use half::{bf16, f16};
use trireme_shared::limits::PAGE_TOKENS;
use trireme_shared::model::random::SplitMix;
use trireme_shared::model::{
    Activation, ActivationFormat, DType, KvFormat, Rope, RopeScaling, RopeStyle, blocks,
};

const ACTIVATIONS: [ActivationFormat; 2] = [ActivationFormat::Int16, ActivationFormat::Int8];

pub(super) fn backends() -> impl Iterator<Item = Cpu> {
    backends_with(ActivationFormat::Int16)
}

fn backends_with(activations: ActivationFormat) -> impl Iterator<Item = Cpu> {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.available());
    isas.map(move |isa| {
        let mut cpu = Cpu::new(isa, 2, activations).unwrap();
        if isa == Isa::Amx {
            cpu.multiplier.tile_rows_min = 1;
        }
        cpu
    })
}

pub(super) fn uniform(random: &mut SplitMix, count: usize) -> Vec<f32> {
    (0..count).map(|_| random.uniform()).collect()
}

/// Byte offsets of a quantised block's f16 numbers: scale, and minimum where it has one.
fn halves_at(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => &[],
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 | DType::IQ4_NL | DType::IQ4_XS => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::Q2_K => &[80, 82],
        DType::Q3_K => &[108],
        DType::Q6_K => &[208],
    }
}

/// A tensor of arbitrary bit patterns, extremes included, with sane scales. Those of super-blocks
/// have four bits, so that times a small scale they are an f16 still.
pub(super) fn file_bytes(random: &mut SplitMix, dtype: DType, elements: usize) -> Vec<u8> {
    let blocks = elements / dtype.block_elements();
    let mut out = Vec::new();
    for _ in 0..blocks {
        let value = random.uniform();
        match dtype {
            DType::F32 => out.extend(value.to_le_bytes()),
            DType::F16 => out.extend(f16::from_f32(value).to_le_bytes()),
            DType::BF16 => out.extend(bf16::from_f32(value).to_le_bytes()),
            _ => {
                let start = out.len();
                out.extend((0..dtype.block_bytes()).map(|_| match random.below(8) {
                    0 => 0x80,
                    1 => 0xff,
                    2 => 0x7f,
                    _ => random.below(256) as u8,
                }));
                let mut halves = [0.01 + 0.01 * random.uniform().abs(), value * 0.1];
                if dtype.block_elements() > BLOCK {
                    halves = [0; 2].map(|_| (8 + random.below(8)) as f32 / 1024.0);
                }
                for (&at, half) in halves_at(dtype).iter().zip(halves) {
                    let half = f16::from_f32(half).to_le_bytes();
                    out[start + at..start + at + 2].copy_from_slice(&half);
                }
            }
        }
    }
    out
}

pub(super) fn view(dtype: DType, rows: usize, columns: usize, bytes: &[u8]) -> WeightView<'_> {
    WeightView {
        dtype,
        packed: dtype,
        rows,
        columns,
        skip: 0,
        bytes,
        stride: bytes.len() / rows,
    }
}

/// `x * w^T` in f64.
pub(super) fn product(w: &WeightView<'_>, x: &[f32]) -> Vec<f64> {
    let weights: Vec<Vec<f32>> = (0..w.rows).map(|r| w.row_f32(r)).collect();
    let dot = |x: &[f32], w: &[f32]| -> f64 {
        x.iter()
            .zip(w)
            .map(|(&x, &w)| f64::from(x) * f64::from(w))
            .sum()
    };
    x.chunks(w.columns)
        .flat_map(|x| weights.iter().map(move |w| dot(x, w)))
        .collect()
}

/// What the quantised form of the rows stands for.
pub(super) fn quantised(x: &[f32]) -> Vec<f32> {
    quantised_to(ActivationFormat::Int16, x)
}

fn quantised_to(activations: ActivationFormat, x: &[f32]) -> Vec<f32> {
    x.chunks(BLOCK)
        .flat_map(|block| {
            let most = block.iter().fold(0f32, |a, v| a.max(v.abs()));
            let scale = match activations {
                ActivationFormat::Int16 => (most / 32_384.0).log2().ceil().exp2(),
                ActivationFormat::Int8 => most / 127.0,
            };
            block
                .iter()
                .map(move |v| scale * (v * (1.0 / scale)).round_ties_even())
        })
        .collect()
}

pub(super) fn assert_near(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(0f64, |a, v| a.max(v.abs()));
    for (at, (&g, &w)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(g) - w).abs();
        assert!(off <= tolerance * size, "{what}: [{at}] is {g}, not {w}");
    }
}

#[test]
fn products_of_every_format_shape_and_row_count() {
    let mut random = SplitMix(1);
    for mut cpu in ACTIVATIONS.into_iter().flat_map(backends_with) {
        for dtype in DType::ALL {
            // Below a tile, one odd tile, odd groups, and enough tiles for wide groups.
            for (outputs, blocks) in [(3, 1), (17, 3), (100, 2), (1_553, 1)] {
                let columns = blocks * dtype.block_elements().max(BLOCK);
                let bytes = file_bytes(&mut random, dtype, outputs * columns);
                let w = view(dtype, outputs, columns, &bytes);
                let matrix = cpu.matrix(&w).unwrap();
                for rows in [1, 2, 3, 7, 8, 15, 70] {
                    let values = uniform(&mut random, rows * columns);
                    let (mut x, mut out) = (CpuRows::default(), CpuRows::default());
                    cpu.upload(&values, columns, &mut x);
                    cpu.linear(&mut x, &mut [(&matrix, &mut out)]);
                    let seen = if matrix.format.is_quantised() {
                        quantised_to(cpu.multiplier.activations, &values)
                    } else {
                        values
                    };
                    let what = format!(
                        "{:?} {:?} {dtype:?} {rows} x {columns} -> {outputs}",
                        cpu.isa, cpu.multiplier.activations
                    );
                    let want = product(&w, &seen);
                    assert_near(&out.data, &want, 2e-6, &what);
                    // In segments of two blocks, the last of which may be short.
                    let mut partial = CpuPartial::default();
                    cpu.linear_partial(&mut x, &matrix, 64, &mut partial);
                    cpu.round(&partial, 1.0, &mut out);
                    assert_near(&out.data, &want, 2e-6, &what);
                }
            }
        }
    }
}

#[test]
fn the_largest_products_do_not_saturate() {
    for mut cpu in ACTIVATIONS.into_iter().flat_map(backends_with) {
        for dtype in DType::ALL.into_iter().filter(|d| d.block_elements() > 1) {
            let columns = 2 * dtype.block_elements();
            for fill in [0x00, 0x80, 0x7f, 0xff] {
                let mut block = vec![fill; dtype.block_bytes()];
                for &at in halves_at(dtype) {
                    block[at..at + 2].copy_from_slice(&f16::from_f32(1.0).to_le_bytes());
                }
                let bytes = block.repeat(16 * 2);
                let w = view(dtype, 16, columns, &bytes);
                let matrix = cpu.matrix(&w).unwrap();
                for value in [1.0f32, -1.0] {
                    let values = vec![value; columns];
                    let (mut x, mut out) = (CpuRows::default(), CpuRows::default());
                    cpu.upload(&values, columns, &mut x);
                    cpu.linear(&mut x, &mut [(&matrix, &mut out)]);
                    let what = format!(
                        "{:?} {:?} {dtype:?} of {fill:#x}",
                        cpu.isa, cpu.multiplier.activations
                    );
                    assert_near(&out.data, &product(&w, &values), 1e-6, &what);
                }
            }
        }
    }
}

/// What placement counts on.
#[test]
fn packed_weights_are_no_larger_than_their_type_says() {
    for dtype in DType::ALL {
        let format = Format::of(dtype);
        let (columns, elements) = (format.block_columns(), dtype.block_elements());
        // Of one row and as many columns as fill blocks of both, in eighths.
        let packed = 8 * format.tile_bytes() / TILE * elements;
        let file = dtype.block_bytes() * columns * (8 + dtype.growth_eighths() as usize);
        assert!(packed <= file, "{dtype:?}: {packed} of {file}");
    }
}

/// A rank's columns may begin and end inside a super-block.
#[test]
fn columns_cut_out_of_super_blocks() {
    let mut random = SplitMix(12);
    for mut cpu in backends() {
        for dtype in DType::ALL
            .into_iter()
            .filter(|d| d.block_elements() > BLOCK)
        {
            let bytes = file_bytes(&mut random, dtype, 21 * 768);
            let whole = view(dtype, 21, 768, &bytes);
            for (start, end) in [(0, 96), (32, 64), (224, 512), (288, 704), (512, 768)] {
                let block = start / 256;
                let part = WeightView {
                    columns: end - start,
                    skip: start % 256,
                    bytes: &bytes[block * dtype.block_bytes()..],
                    ..whole
                };
                let want: Vec<Vec<f32>> = (0..21)
                    .map(|row| whole.row_f32(row)[start..end].to_vec())
                    .collect();
                let what = format!("{:?} {dtype:?} columns {start}..{end}", cpu.isa);
                let matrix = cpu.matrix(&part).unwrap();
                let mut row = vec![0.0; end - start];
                for (number, want) in want.iter().enumerate() {
                    matrix.unpack_row(number, &mut row);
                    assert!(row.iter().zip(want).all(|(&a, &b)| a as f32 == b), "{what}");
                    assert_eq!(part.row_f32(number), *want, "{what}");
                }
                let values = uniform(&mut random, end - start);
                let (mut x, mut out) = (CpuRows::default(), CpuRows::default());
                cpu.upload(&values, end - start, &mut x);
                cpu.linear(&mut x, &mut [(&matrix, &mut out)]);
                assert_near(&out.data, &product(&part, &quantised(&values)), 2e-6, &what);
            }
        }
    }
}

/// Products of a super-block's two scales need not be f16 numbers; they are rounded to them.
#[test]
fn scales_of_super_blocks_are_rounded_by_no_more_than_an_f16() {
    let mut random = SplitMix(13);
    for dtype in DType::ALL
        .into_iter()
        .filter(|d| d.block_elements() > BLOCK)
    {
        let mut cpu = Cpu::new(Isa::Portable, 1, ActivationFormat::Int16).unwrap();
        let mut bytes = Vec::new();
        blocks::encode(dtype, &uniform(&mut random, 20 * 512), &mut bytes);
        let w = view(dtype, 20, 512, &bytes);
        let table = cpu.matrix(&w).unwrap();
        let mut got = vec![0.0; 512];
        let mut largest = 0f64;
        for row in 0..20 {
            table.unpack_row(row, &mut got);
            for (got, want) in got.iter().zip(w.row_f32(row)) {
                largest = largest.max((got - f64::from(want)).abs());
            }
        }
        // Values of 1, that are at most 2 times a scale above a minimum of -1.
        assert!(
            largest > 0.0 && largest <= 3.0 / 2048.0,
            "{dtype:?}: {largest}"
        );
    }
}

#[test]
fn several_matrices_of_one_input_and_columns_cut_out_of_rows() {
    let mut random = SplitMix(2);
    for mut cpu in backends() {
        let x_values = uniform(&mut random, 2 * 64);
        let (q, v) = (
            file_bytes(&mut random, DType::Q4_1, 40 * 64),
            file_bytes(&mut random, DType::F16, 24 * 64),
        );
        let (wq, wv) = (view(DType::Q4_1, 40, 64, &q), view(DType::F16, 24, 64, &v));
        let (mq, mv) = (cpu.matrix(&wq).unwrap(), cpu.matrix(&wv).unwrap());
        let (mut x, mut oq, mut ov) = Default::default();
        cpu.upload(&x_values, 64, &mut x);
        cpu.linear(&mut x, &mut [(&mq, &mut oq), (&mv, &mut ov)]);
        assert_near(
            &oq.data,
            &product(&wq, &quantised(&x_values)),
            2e-6,
            "mixed q",
        );
        assert_near(&ov.data, &product(&wv, &x_values), 2e-6, "mixed v");

        // Columns 32..64 of the same tensor.
        let cut = WeightView {
            columns: 32,
            bytes: &q[20..],
            ..wq
        };
        let matrix = cpu.matrix(&cut).unwrap();
        let half: Vec<f32> = x_values[..32].to_vec();
        let (mut x, mut out) = (CpuRows::default(), CpuRows::default());
        cpu.upload(&half, 32, &mut x);
        cpu.linear(&mut x, &mut [(&matrix, &mut out)]);
        assert_near(
            &out.data,
            &product(&cut, &quantised(&half)),
            2e-6,
            "cut columns",
        );
    }
}

#[test]
fn embedding_rows_come_back_as_the_file_has_them() {
    let mut random = SplitMix(3);
    for dtype in DType::ALL {
        let mut cpu = Cpu::new(Isa::Portable, 1, ActivationFormat::Int16).unwrap();
        let width = 3 * dtype.block_elements().max(BLOCK);
        let bytes = file_bytes(&mut random, dtype, 53 * width);
        let w = view(dtype, 53, width, &bytes);
        let table = cpu.matrix(&w).unwrap();
        let (mut partial, mut out) = (CpuPartial::default(), CpuRows::default());
        let tokens = [152, 99, 100, 153, 120];
        cpu.embed(&table, Span::new(100, 153), &tokens, &mut partial);
        cpu.round(&partial, 1.0, &mut out);
        let zero = vec![0.0; width];
        let want = [
            w.row_f32(52),
            zero.clone(),
            w.row_f32(0),
            zero,
            w.row_f32(20),
        ]
        .concat();
        assert_eq!(out.data, want, "{dtype:?}");
    }
}

#[test]
fn norm_and_gated_ffn() {
    let mut random = SplitMix(4);
    for mut cpu in backends() {
        for (gate_type, up_type) in [
            (DType::F32, DType::F32),
            (DType::Q4_1, DType::Q4_1),
            (DType::Q8_0, DType::Q4_0),
            (DType::Q4_K, DType::Q6_K),
        ] {
            for (ffn, columns) in [(32, 256), (160, 32), (1_568, 32)] {
                if columns % gate_type.block_elements() > 0 {
                    continue;
                }
                let (g, u) = (
                    file_bytes(&mut random, gate_type, ffn * columns),
                    file_bytes(&mut random, up_type, ffn * columns),
                );
                let (gate, up) = (
                    view(gate_type, ffn, columns, &g),
                    view(up_type, ffn, columns, &u),
                );
                let gated = cpu.gated(&gate, &up).unwrap();
                let rows = 11;
                let values = uniform(&mut random, rows * columns);
                let weight = uniform(&mut random, columns);
                let (mut x, mut normed, mut out) = Default::default();
                cpu.upload(&values, columns, &mut x);
                cpu.rms_norm(&x, &weight, 1e-5, &mut normed);
                let mut want = Vec::new();
                for row in values.chunks(columns) {
                    let mean: f64 =
                        row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / columns as f64;
                    let factor = 1.0 / (mean + 1e-5).sqrt();
                    want.extend(
                        row.iter()
                            .zip(&weight)
                            .map(|(&v, &w)| f64::from(v) * factor * f64::from(w)),
                    );
                }
                let what = format!("{:?} {gate_type:?}", cpu.isa);
                assert_near(&normed.data, &want, 1e-6, &what);

                let input = if gate_type == DType::F32 {
                    normed.data.clone()
                } else {
                    quantised(&normed.data)
                };
                let (gates, ups) = (product(&gate, &input), product(&up, &input));
                let bent =
                    |g: f64| (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
                for activation in [Activation::GeluTanh, Activation::Silu] {
                    cpu.gated_ffn(&mut normed, &gated, activation, &mut out);
                    let both = gates.iter().zip(&ups);
                    let want: Vec<f64> = both
                        .map(|(&g, u)| match activation {
                            Activation::Silu => g / (1.0 + (-g).exp()) * u,
                            Activation::GeluTanh => 0.5 * g * (1.0 + bent(g).tanh()) * u,
                        })
                        .collect();
                    assert_near(&out.data, &want, 1e-5, &what);
                }
                if out.is_quantised {
                    let mut fresh = CpuRows::default();
                    cpu.upload(&out.data, ffn, &mut fresh);
                    cpu.quantise_rows(&mut fresh);
                    assert_eq!(fresh.bytes, out.bytes, "{what}");
                    assert_eq!(fresh.scales, out.scales, "{what}");
                    assert_eq!(fresh.totals, out.totals, "{what}");
                    assert_eq!(fresh.scaled_totals, out.scaled_totals, "{what}");
                }
            }
        }
    }
}

#[test]
fn odd_widths_and_zero_or_tiny_rows_are_harmless() {
    for mut cpu in backends() {
        let (mut x, mut out) = (CpuRows::default(), CpuRows::default());
        cpu.upload(&[0.5; 37], 37, &mut x);
        cpu.rms_norm(&x, &vec![2.0; 37], 0.0, &mut out);
        assert_near(&out.data, &[2.0; 37], 1e-6, "odd width");

        let mut values = vec![0.0; 64];
        values[40] = 1e-42;
        cpu.upload(&values, 64, &mut x);
        cpu.quantise_rows(&mut x);
        if x.form.in_lines {
            assert!(x.lines[..4].iter().all(|line| line == &Line([0; BLOCK])));
        } else {
            assert!(x.bytes[..4].iter().all(|b| b == &BlockBytes([0; BLOCK])));
        }
        assert_eq!(x.totals[..2], [[0; 2]; 2]);
        assert!(x.scales.iter().all(|s| s.is_finite()));
    }
}

/// A broken number must show, and not count as zero.
#[test]
fn what_is_no_number_stays_none() {
    assert_eq!(rows::next_power_of_two(0.0), 0.0);
    assert_eq!(rows::next_power_of_two(0.75), 1.0);
    assert_eq!(rows::next_power_of_two(2.0), 2.0);
    assert_eq!(rows::next_power_of_two(f32::INFINITY), f32::INFINITY);
    assert_eq!(rows::next_power_of_two(f32::NAN), f32::INFINITY);
}

/// What placement counts on, where heads fill whole vectors.
#[test]
fn pages_are_as_large_as_their_format_says() {
    for format in [KvFormat::F16, KvFormat::Int8] {
        for dim in [16, 64, 256] {
            let bytes = PAGE_TOKENS as u64 * format.token_bytes(dim);
            assert_eq!(attention::head_bytes(format, dim as usize) as u64, bytes);
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
    /// How keys and values are rounded, if they are.
    kept: Option<KvFormat>,
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
        let Some(format) = self.kept else {
            return numbers;
        };
        let most = numbers.iter().fold(0f64, |a, v| a.max(v.abs()));
        let numbers = numbers.into_iter();
        match format {
            KvFormat::F16 => numbers.map(|v| f16::from_f64(v).to_f32().into()).collect(),
            KvFormat::Int8 => numbers
                .map(|v| (v * 127.0 / most).round() * most / 127.0)
                .collect(),
        }
    }

    /// Output of the last of `rows` rows of q, k and v, which stand at positions 0, 1, ...
    fn last(&self, q: &[f32], k: &[f32], v: &[f32], rows: usize) -> Vec<f64> {
        let (kv_width, q_width) = (self.heads * self.dim, self.heads * self.group * self.dim);
        let mut out = Vec::new();
        for head in 0..self.heads * self.group {
            let at = (rows - 1) * q_width + head * self.dim;
            let query = self.rotated(&q[at..at + self.dim], 0, rows - 1);
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
    attention_over_pages(KvFormat::F16, 1e-3, 2e-3);
}

/// Of keys and values rounded to 254 steps of their heads' ranges, the output is off by 5 % of its
/// range at most (scores of some units make it so much), and by no more than f16 would add to that rounding.
#[test]
fn attention_over_pages_of_bytes() {
    attention_over_pages(KvFormat::Int8, 1e-3, 5e-2);
}

/// `kernels` is how far the output may be from exact sums of what the cache holds, `all` from those of what
/// it was given.
fn attention_over_pages(format: KvFormat, kernels: f64, all: f64) {
    let tolerances = [(Some(format), kernels), (None, all)];
    let mut random = SplitMix(5);
    for mut cpu in backends() {
        use RopeStyle::{Halves, Interleaved};
        // The window is narrower than a page, wider, all there is; tiles of many queries begin
        // with some that see pages the others do not.
        for (heads, group, dim, rope_dims, style, window, score_cap, has_norms) in [
            (1, 3, 64, 64, Interleaved, None, None, false),
            (2, 1, 16, 16, Halves, None, Some(2.0), true),
            (1, 8, 24, 16, Halves, Some(5), None, false),
            (3, 2, 7, 4, Interleaved, Some(1), None, true),
            (2, 1, 16, 16, Halves, Some(17), Some(2.0), false),
            (1, 1, 32, 32, Halves, Some(53), None, false),
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
        unseen_tokens_do_not_matter(format);
    }
}

fn unseen_tokens_do_not_matter(format: KvFormat) {
    let mut cpu = Cpu::new(Isa::detect(), 1, ActivationFormat::Int16).unwrap();
    let shape = KvShape {
        layers: 1,
        pages: 2,
        heads: 1,
        head_dim: 16,
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
        let wide: Vec<f32> = values.iter().flat_map(|&v| [v; 16]).collect();
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
        cpu.upload(&wide, 16, &mut q);
        cpu.upload(&wide, 16, &mut k);
        cpu.rope_append(&step, None, &mut q, &k, &k, &mut kv, 0);
        cpu.attention(&step, &q, &kv, 0, &mut out);
        out.data[..16].to_vec()
    };
    // Pages full of a former owner's infinities.
    run(&[f32::INFINITY; 2 * PAGE_TOKENS]);
    assert_near(&run(&[0.5]), &[0.5; 16], 1e-7, "alone");
    // The next token, in the same tile of queries, seen by the second query only.
    assert_eq!(run(&[0.0, 6e4]), [0.0; 16]);
    // A page that only the last queries of a tile see, and that they do not fill.
    let tile = run(&[0.5; PAGE_TOKENS + 4]);
    assert_near(&tile, &[0.5; 16], 1e-7, "first of a tile");
}

/// To the last bit, what a query in a window gets does not depend on the queries beside it.
#[test]
fn a_windowed_query_is_alone_in_its_tile_or_not() {
    let mut random = SplitMix(6);
    let (tokens, dim, window) = (75, 32, 9);
    let [q, k, v] = [0, 1, 2].map(|_| uniform(&mut random, tokens * dim));
    let (ones, zeroes) = (vec![1.0; tokens], vec![0.0; tokens]);
    for mut cpu in backends() {
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
fn biases_scales_sums_and_soft_caps() {
    let mut random = SplitMix(8);
    for mut cpu in backends() {
        // Below a vector, whole ones, and a rest; the largest far beyond the cap.
        for width in [3, 32, 37] {
            let values: Vec<f32> = uniform(&mut random, 2 * width)
                .iter()
                .map(|v| v * v * v * 400.0)
                .collect();
            let bias = uniform(&mut random, width);
            let (mut x, mut doubled) = (CpuRows::default(), CpuRows::default());
            let mut partial = CpuPartial::default();
            partial.reshape(2, width);
            partial.data = values.iter().map(|&v| f64::from(v)).collect();
            cpu.round(&partial, 1.0, &mut x);
            assert_eq!(x.data, values);
            cpu.round(&partial, 2.0, &mut doubled);
            cpu.add_bias(&mut x, &bias);
            cpu.add_rows(&mut x, &doubled);
            let want: Vec<f32> = values
                .iter()
                .zip(bias.iter().cycle())
                .map(|(v, b)| (v + b) + 2.0 * v)
                .collect();
            assert_eq!(x.data, want);
            let capped: Vec<f64> = want
                .iter()
                .map(|&v| 30.0 * (f64::from(v) / 30.0).tanh())
                .collect();
            cpu.soft_cap(&mut x, 30.0);
            assert_near(&x.data, &capped, 1e-6, &format!("{:?} {width}", cpu.isa));
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
        task_queries(&step, heads, threads)
    };
    // A head's queries together, though of three heads one thread has two.
    assert_eq!(size(&[1], 3, 3, 2), 3);
    // One head's, apart.
    assert_eq!(size(&[1], 1, 8, 2), 4);
    assert_eq!(size(&[1], 3, 3, 8), 2);
    assert_eq!(size(&[512], 3, 3, 2), TASK_QUERIES_MAX);
}
