//! Each kernel on each instruction set this machine has, against plain f64 arithmetic.

use super::*;
use crate::backend::cpu::pack::Format;
use crate::backend::cpu::rows::{BlockBytes, Line};
use half::{bf16, f16};
use trireme_shared::model::random::SplitMix;
use trireme_shared::model::{Activation, ActivationFormat, DType, blocks};

const ACTIVATIONS: [ActivationFormat; 3] = [
    ActivationFormat::Int16,
    ActivationFormat::Int8,
    ActivationFormat::Bf16,
];

/// One of each format that quantised weights are packed in (of `Fives` both that differ in what they store).
pub(super) const OF_EACH_FORMAT: [DType; 9] = [
    DType::Q2_K,
    DType::Q3_K,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q6_K,
    DType::Q8_0,
    DType::IQ4_NL,
];

pub(super) fn backends() -> impl Iterator<Item = Cpu> {
    backends_with(ActivationFormat::Int16)
}

pub(super) fn backends_with(activations: ActivationFormat) -> impl Iterator<Item = Cpu> {
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

/// The nearest number of eight bits, of two as near the larger one.
pub(super) fn to_bf16(value: f32) -> f32 {
    let bits = value.to_bits() + 0x8000;
    f32::from_bits(bits & 0xffff_0000)
}

/// `x * w^T` in f64, of what `of` makes of each weight.
fn product_with(w: &WeightView<'_>, x: &[f32], of: impl Fn(f32) -> f32) -> Vec<f64> {
    let weights = (0..w.rows).flat_map(|row| w.row_f32(row));
    let bytes: Vec<u8> = weights.flat_map(|v| of(v).to_le_bytes()).collect();
    product(&view(DType::F32, w.rows, w.columns, &bytes), x)
}

/// `x * w^T` in f64, of weights as they are multiplied where activations are in this form.
fn product_of(cpu: &Cpu, w: &WeightView<'_>, x: &[f32]) -> Vec<f64> {
    let is_rounded =
        cpu.multiplier.activations == ActivationFormat::Bf16 && Format::of(w.packed).is_quantised();
    product_with(w, x, |v| if is_rounded { to_bf16(v) } else { v })
}

fn quantised_to(activations: ActivationFormat, x: &[f32]) -> Vec<f32> {
    if activations == ActivationFormat::Bf16 {
        return x.iter().map(|v| to_bf16(*v)).collect();
    }
    x.chunks(BLOCK)
        .flat_map(|block| {
            let most = block.iter().fold(0f32, |a, v| a.max(v.abs()));
            let scale = match activations {
                // In f64: an f32 logarithm of what is just above a power of two is whole.
                ActivationFormat::Int16 => f64::from(most / 32_384.0).log2().ceil().exp2() as f32,
                ActivationFormat::Int8 | ActivationFormat::Bf16 => most / 127.0,
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

/// What products of rows with a matrix could add up to at most.
fn sizes_of(w: &WeightView<'_>, x: &[f32]) -> Vec<f64> {
    let sizes: Vec<f32> = x.iter().map(|v| v.abs()).collect();
    product_with(w, &sizes, f32::abs)
}

/// Each sum within its own size's share.
fn assert_within(got: &[f32], want: &[f64], sizes: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (at, (&g, &w)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(g) - w).abs() / sizes[at];
        assert!(
            off <= tolerance,
            "{what}: [{at}] is {g}, not {w}: {off:e} of its size"
        );
    }
}

#[test]
fn products_of_every_format_shape_and_row_count() {
    let mut random = SplitMix(1);
    for mut cpu in ACTIVATIONS.into_iter().flat_map(backends_with) {
        for dtype in DType::ALL {
            // Below a tile, one odd tile, two groups in rows as long as a wide one, odd groups, and enough tiles
            // for wide groups.
            for (outputs, blocks) in [(3, 1), (17, 3), (64, 1), (100, 2), (1_553, 1)] {
                let columns = blocks * dtype.block_elements().max(BLOCK);
                let bytes = file_bytes(&mut random, dtype, outputs * columns);
                let w = view(dtype, outputs, columns, &bytes);
                let matrix = cpu.matrix(&w).unwrap();
                // The last is more than one call of strips.
                let most = if outputs == 100 { 290 } else { 70 };
                for rows in [1, 2, 3, 7, 8, 15, 33, most] {
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
                    let want = product_of(&cpu, &w, &seen);
                    let sizes = sizes_of(&w, &seen);
                    assert_within(&out.data, &want, &sizes, 5e-7, &what);
                    // In segments of two blocks, the last of which may be short.
                    let mut partial = CpuPartial::default();
                    cpu.linear_partial(&mut x, &matrix, 64, &mut partial);
                    cpu.round(&partial, 1.0, &mut out);
                    assert_within(&out.data, &want, &sizes, 5e-7, &what);
                    // At once what it is in two steps.
                    let (mut at_once, mut after) = (CpuRows::default(), CpuRows::default());
                    cpu.upload(&out.data, outputs, &mut at_once);
                    cpu.upload(&out.data, outputs, &mut after);
                    cpu.linear_add(&mut x, &matrix, 64, &mut at_once);
                    cpu.add(&mut after, &partial);
                    assert!(at_once.data == after.data, "{what}");
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
                    let want = product_of(&cpu, &w, &values);
                    assert_near(&out.data, &want, 1e-6, &what);
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
    let all = [ActivationFormat::Int16, ActivationFormat::Bf16];
    for mut cpu in all.into_iter().flat_map(backends_with) {
        // So that gated activations are there as they are, too.
        cpu.has_floats = true;
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
                let rows = 21;
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
                let activations = cpu.multiplier.activations;
                let what = format!("{:?} {activations:?} {gate_type:?}", cpu.isa);
                assert_near(&normed.data, &want, 1e-6, &what);

                let input = if gate_type == DType::F32 {
                    normed.data.clone()
                } else {
                    quantised_to(activations, &normed.data)
                };
                let gates = product_of(&cpu, &gate, &input);
                let ups = product_of(&cpu, &up, &input);
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
                    // `pointwise::Near`, where quantised weights meet bf16.
                    let near = match cpu.multiplier.activations {
                        ActivationFormat::Bf16 => 1.5e-4,
                        _ => 1e-5,
                    };
                    assert_near(&out.data, &want, near, &what);
                }
                if out.is_quantised {
                    let mut fresh = CpuRows::default();
                    cpu.upload(&out.data, ffn, &mut fresh);
                    cpu.quantise_rows(&mut fresh);
                    if out.form.is_in_strips() {
                        assert!(strips(&fresh) == strips(&out), "{what}");
                        continue;
                    }
                    assert_eq!(fresh.bytes, out.bytes, "{what}");
                    assert_eq!(fresh.scales, out.scales, "{what}");
                    assert_eq!(fresh.totals, out.totals, "{what}");
                    assert_eq!(fresh.scaled_totals, out.scaled_totals, "{what}");
                }
            }
        }
    }
}

/// Of every row its bf16, as they stand in strips.
fn strips(x: &CpuRows) -> Vec<[u16; 2]> {
    let blocks = x.width / BLOCK;
    let line = |row: usize, at: usize| (row / 16 * blocks + at / 16) * 16 + at % 16;
    let pairs = (0..x.rows).flat_map(|row| (0..blocks * 16).map(move |at| (row, at)));
    let pairs = pairs.map(|(row, at)| {
        let line = &x.lines[line(row, at)].0;
        [line[row % 16 * 2], line[row % 16 * 2 + 1]]
    });
    pairs.collect()
}

/// Rows alone or together, of a kernel for few and of one for many: the same pairs in the same places.
#[test]
fn strips_hold_pairs_of_columns() {
    let mut random = SplitMix(16);
    for mut cpu in backends_with(ActivationFormat::Bf16) {
        if !cpu.multiplier.form(1).is_in_strips() {
            continue;
        }
        for rows in [1, 3, 4, 16, 19, 37] {
            let mut values = uniform(&mut random, rows * 96);
            values[0] = 1e-30;
            values[1] = f32::INFINITY;
            values[2] = -1.003_906_3;
            let (mut x, mut one_by_one) = (CpuRows::default(), CpuRows::default());
            cpu.upload(&values, 96, &mut x);
            cpu.quantise_rows(&mut x);
            cpu.upload(&values, 96, &mut one_by_one);
            one_by_one.reserve_quants(x.form);
            let to = one_by_one.quants_mut();
            for (row, values) in values.chunks(96).enumerate() {
                // SAFETY: a row of three blocks, room was made, and the backend checked its instruction set.
                unsafe { rows::quantise(cpu.isa, values.as_ptr(), to, row, 0, 3) };
            }
            let got = strips(&x);
            assert!(got == strips(&one_by_one), "{rows}");
            for (at, pair) in got.iter().enumerate() {
                let first = at / 16 * 32 + super::lanes::PAIRS[at % 16];
                for (bits, column) in pair.iter().zip([first, first + 2]) {
                    let want = match values[column] {
                        tiny if tiny.abs() < 1e-24 => 0.0,
                        value => to_bf16(value),
                    };
                    assert_eq!(bf16::from_bits(*bits).to_f32(), want, "{rows}: {column}");
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
