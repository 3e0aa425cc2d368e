//! Blocks of the types whose scales ggml searches for, found here without a search: each value is
//! as near as the scales allow, the scales are the plainest that reach every value. For test models.

use super::{LEVELS, PIECE, Piece};
use crate::model::DType;
use half::f16;

/// Values that share a small scale.
fn part_elements(dtype: DType) -> usize {
    match dtype {
        DType::Q2_K | DType::Q3_K | DType::Q6_K => 16,
        _ => 32,
    }
}

/// Scale and minimum of one part: `least + scale * (level - zero)` reaches all of it, with levels
/// 0..=`top`. Types without a minimum have a zero instead, and the value of largest magnitude is
/// their lowest level.
fn scale_and_least(dtype: DType, part: &[f32]) -> (f32, f32) {
    let extreme = |lowest: f32| {
        let far = part
            .iter()
            .fold(0f32, |m, x| if x.abs() > m.abs() { *x } else { m });
        (far / lowest, 0.0)
    };
    let between = |top: f32, above: f32| {
        let least = part.iter().fold(above, |m, x| m.min(*x));
        let most = part.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
        ((most - least).max(0.0) / top, least)
    };
    match dtype {
        DType::Q5_0 => extreme(-16.0),
        DType::Q3_K => extreme(-4.0),
        DType::Q6_K => extreme(-32.0),
        DType::IQ4_NL | DType::IQ4_XS => extreme(-127.0),
        DType::Q5_1 => between(31.0, f32::INFINITY),
        // These minima are never above zero.
        DType::Q2_K => between(3.0, 0.0),
        DType::Q4_K => between(15.0, 0.0),
        _ => between(31.0, 0.0),
    }
}

/// One block's bytes.
pub(super) fn block(dtype: DType, values: &[f32]) -> Vec<u8> {
    let mut out = vec![0; dtype.block_bytes()];
    let parts = values.chunks_exact(part_elements(dtype));
    let (scales, leasts): (Vec<f32>, Vec<f32>) =
        parts.map(|part| scale_and_least(dtype, part)).unzip();
    put_scales(dtype, &mut out, &scales, &leasts);
    for (n, values) in values.chunks_exact(PIECE).enumerate() {
        // The scales as they came out.
        let piece = Piece::of(dtype, &out, n);
        let quants = std::array::from_fn(|i| nearest(dtype, &piece, i, values[i]));
        put_quants(dtype, &mut out, n, &quants);
    }
    out
}

fn nearest(dtype: DType, piece: &Piece, i: usize, value: f32) -> u8 {
    let (scale, least) = (piece.scales[i / 16], piece.leasts[i / 16]);
    let level = if scale == 0.0 {
        0.0
    } else {
        (value - least) / scale
    };
    if piece.has_levels {
        let off = |q: &u8| (level - f32::from(LEVELS[usize::from(*q)])).abs();
        return (0..16)
            .min_by(|a, b| off(a).total_cmp(&off(b)))
            .unwrap_or(0);
    }
    let top = match dtype {
        DType::Q2_K => 3.0,
        DType::Q3_K => 7.0,
        DType::Q4_K => 15.0,
        DType::Q6_K => 63.0,
        _ => 31.0,
    };
    (level + f32::from(piece.zero)).round().clamp(0.0, top) as u8
}

fn put_half(out: &mut [u8], at: usize, value: f32) {
    out[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// Whole numbers -`below`..=`above` by which one common factor, the second result, stands for
/// each of `values`.
fn in_steps(values: &[f32], below: f32, above: f32) -> (Vec<i8>, f32) {
    let most = values.iter().fold(0f32, |m, x| m.max(x.abs()));
    let step = f16::from_f32(most / above).to_f32();
    let inverse = if step == 0.0 { 0.0 } else { 1.0 / step };
    let steps = values
        .iter()
        .map(|x| (x * inverse).round().clamp(-below, above) as i8);
    (steps.collect(), step)
}

fn put_scales(dtype: DType, out: &mut [u8], scales: &[f32], leasts: &[f32]) {
    match dtype {
        DType::Q5_0 | DType::IQ4_NL => put_half(out, 0, scales[0]),
        DType::Q5_1 => {
            put_half(out, 0, scales[0]);
            put_half(out, 2, leasts[0]);
        }
        DType::Q2_K | DType::Q4_K | DType::Q5_K => {
            let (most, at) = match dtype {
                DType::Q2_K => (15.0, 80),
                _ => (63.0, 0),
            };
            let below: Vec<f32> = leasts.iter().map(|x| -x).collect();
            let (scales, d) = in_steps(scales, 0.0, most);
            let (leasts, least) = in_steps(&below, 0.0, most);
            put_half(out, at, d);
            put_half(out, at + 2, least);
            for (n, (s, m)) in scales.into_iter().zip(leasts).enumerate() {
                let (s, m) = (s as u8, m as u8);
                match n {
                    _ if dtype == DType::Q2_K => out[n] = s | m << 4,
                    0..4 => {
                        out[4 + n] = s;
                        out[8 + n] = m;
                    }
                    _ => {
                        out[8 + n] = (s & 15) | m << 4;
                        out[n] |= s >> 4 << 6;
                        out[4 + n] |= m >> 4 << 6;
                    }
                }
            }
        }
        DType::Q3_K => {
            let (scales, d) = in_steps(scales, 32.0, 31.0);
            put_half(out, 108, d);
            for (n, s) in scales.into_iter().enumerate() {
                let s = (s + 32) as u8;
                out[96 + n % 8] |= (s & 15) << (n / 8 * 4);
                out[104 + n % 4] |= s >> 4 << (n / 4 * 2);
            }
        }
        DType::Q6_K => {
            let (scales, d) = in_steps(scales, 127.0, 127.0);
            put_half(out, 208, d);
            let at = scales.into_iter().enumerate();
            at.for_each(|(n, s)| out[192 + n] = s as u8);
        }
        _ => {
            let (scales, d) = in_steps(scales, 32.0, 31.0);
            put_half(out, 0, d);
            for (n, s) in scales.into_iter().enumerate() {
                let s = (s + 32) as u8;
                out[4 + n / 2] |= (s & 15) << (n % 2 * 4);
                out[2 + n / 4] |= s >> 4 << (n % 4 * 2);
            }
        }
    }
}

/// The reverse of what [`Piece::of`] reads, into zeroes.
fn put_quants(dtype: DType, out: &mut [u8], n: usize, quants: &[u8; PIECE]) {
    for (i, &q) in quants.iter().enumerate() {
        let nibble = |from: usize| (from + i % 16, (q & 15) << (i / 16 * 4));
        let bit = |from: usize| (from + i / 8, (q >> 4) << (i % 8));
        let pair = |from: usize| (from + n / 2 * 32 + i, (q & 15) << (n % 2 * 4));
        let crumb = |from: usize, q: u8| (from + n / 4 * 32 + i, (q & 3) << (n % 4 * 2));
        let nothing = (0, 0);
        let places = match dtype {
            DType::Q5_0 => [nibble(6), bit(2)],
            DType::Q5_1 => [nibble(8), bit(4)],
            DType::Q2_K => [crumb(16, q), nothing],
            DType::Q3_K => [crumb(32, q), (i, (q >> 2) << n)],
            DType::Q4_K => [pair(16), nothing],
            DType::Q5_K => [pair(48), (16 + i, (q >> 4) << n)],
            DType::Q6_K => {
                let low = n / 4 * 64 + n % 2 * 32 + i;
                [(low, (q & 15) << (n % 4 / 2 * 4)), crumb(128, q >> 4)]
            }
            DType::IQ4_NL => [nibble(2), nothing],
            _ => [nibble(8 + 16 * n), nothing],
        };
        places.into_iter().for_each(|(at, bits)| out[at] |= bits);
    }
}
