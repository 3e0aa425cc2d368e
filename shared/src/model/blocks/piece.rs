//! Every quantised type in one shape, 32 columns at a time.

use crate::model::DType;
use half::f16;

/// Columns of a piece.
pub const PIECE: usize = 32;

/// What the nibbles of `IQ4_NL` and `IQ4_XS` stand for (`kvalues_iq4nl` of `ggml-common.h`).
pub const LEVELS: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// 32 consecutive values of a row, that lie in one block of the file. Value `i` is
/// `scales[i / 16] * (quants[i] - zero) + leasts[i / 16]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Of the types with levels, names of levels.
    pub quants: [u8; PIECE],
    /// Whether `LEVELS[quant]` stands where the formula has `quants[i] - zero`.
    pub has_levels: bool,
    pub zero: u8,
    pub scales: [f32; 2],
    pub leasts: [f32; 2],
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Scale and minimum of piece `n` of a `Q4_K` or `Q5_K` block, six bits each. Those of the first
/// four pieces lie in the low bits of eight bytes, whose high bits have the rest of the last four's.
fn scale_and_least(packed: &[u8], n: usize) -> (u8, u8) {
    if n < 4 {
        return (packed[n] & 63, packed[n + 4] & 63);
    }
    let low = packed[n + 4];
    (
        (low & 15) | (packed[n - 4] >> 6 << 4),
        (low >> 4) | (packed[n] >> 6 << 4),
    )
}

/// Scale `n` of the sixteen of a `Q3_K` block: four low bits in one of eight bytes, two high ones
/// in one of four.
fn scale_of_six_bits(packed: &[u8], n: usize) -> i8 {
    let low = packed[n % 8] >> (n / 8 * 4) & 15;
    let high = packed[8 + n % 4] >> (n / 4 * 2) & 3;
    (low | high << 4) as i8 - 32
}

impl Piece {
    /// Piece `n` of a whole block of a quantised type, as the file has it.
    ///
    /// # Panics
    /// Where `block` is shorter than the type's block, or the type is one of floats.
    pub fn of(dtype: DType, block: &[u8], n: usize) -> Self {
        let b = block;
        // Nibbles of sixteen bytes: the low ones are the first half.
        let nibble = |from: usize, i: usize| b[from + i % 16] >> (i / 16 * 4) & 15;
        let bit = |from: usize, i: usize| b[from + i / 8] >> (i % 8) & 1;
        // Of super-blocks: pieces share their bytes with others, by bits.
        let pair_nibble = |from: usize, i: usize| b[from + n / 2 * 32 + i] >> (n % 2 * 4) & 15;
        let crumb = |from: usize, i: usize| b[from + n / 4 * 32 + i] >> (n % 4 * 2) & 3;
        match dtype {
            DType::F32 | DType::F16 | DType::BF16 => panic!("{dtype:?} has no quants"),
            DType::Q4_0 => Self::even(half(b, 0), 8, |i| nibble(2, i)),
            DType::Q4_1 => Self::even(half(b, 0), 0, |i| nibble(4, i)).above(half(b, 2)),
            DType::Q5_0 => Self::even(half(b, 0), 16, |i| nibble(6, i) | bit(2, i) << 4),
            DType::Q5_1 => {
                Self::even(half(b, 0), 0, |i| nibble(8, i) | bit(4, i) << 4).above(half(b, 2))
            }
            DType::Q8_0 => Self::even(half(b, 0), 128, |i| b[2 + i] ^ 0x80),
            DType::Q4_K | DType::Q5_K => {
                let (scale, least) = scale_and_least(&b[4..16], n);
                let quants = |i: usize| match dtype {
                    DType::Q4_K => pair_nibble(16, i),
                    _ => pair_nibble(48, i) | (b[16 + i] >> n & 1) << 4,
                };
                Self::even(half(b, 0) * f32::from(scale), 0, quants)
                    .above(-(half(b, 2) * f32::from(least)))
            }
            DType::Q2_K => {
                let (d, least) = (half(b, 80), half(b, 82));
                let packed = [b[2 * n], b[2 * n + 1]];
                Self {
                    leasts: packed.map(|p| -(least * f32::from(p >> 4))),
                    ..Self::halves(packed.map(|p| d * f32::from(p & 15)), 0, |i| crumb(16, i))
                }
            }
            DType::Q3_K => {
                let scales = [2 * n, 2 * n + 1].map(|at| scale_of_six_bits(&b[96..108], at));
                let d = half(b, 108);
                Self::halves(scales.map(|s| d * f32::from(s)), 4, |i| {
                    crumb(32, i) | (b[i] >> n & 1) << 2
                })
            }
            DType::Q6_K => {
                let scales = [b[192 + 2 * n], b[193 + 2 * n]].map(|s| f32::from(s as i8));
                let d = half(b, 208);
                // Within 128 columns, pieces 0 and 1 have the low nibbles, 2 and 3 the high ones.
                let low = |i: usize| b[n / 4 * 64 + n % 2 * 32 + i] >> (n % 4 / 2 * 4) & 15;
                Self::halves(scales.map(|s| d * s), 32, |i| low(i) | crumb(128, i) << 4)
            }
            DType::IQ4_NL => Self::even(half(b, 0), 0, |i| nibble(2, i)).by_levels(),
            DType::IQ4_XS => {
                let high = u16::from_le_bytes([b[2], b[3]]) >> (2 * n) & 3;
                let low = b[4 + n / 2] >> (n % 2 * 4) & 15;
                let scale = (low | (high as u8) << 4) as i8 - 32;
                Self::even(half(b, 0) * f32::from(scale), 0, |i| nibble(8 + 16 * n, i)).by_levels()
            }
        }
    }

    /// `values` as a block of `Q4_0`, `Q4_1` or `Q8_0`, as ggml rounds them: quants by the scale in f32, which is
    /// then rounded to f16.
    ///
    /// # Panics
    /// Where the type is another one.
    pub fn nearest(dtype: DType, values: &[f32; PIECE]) -> Self {
        let inverse = |d: f32| if d == 0.0 { 0.0 } else { 1.0 / d };
        let stored = |x: f32| f16::from_f32(x).to_f32();
        match dtype {
            DType::Q4_0 => {
                let extreme = values
                    .iter()
                    .fold(0.0f32, |m, &x| if x.abs() > m.abs() { x } else { m });
                let d = extreme / -8.0;
                let id = inverse(d);
                Self::even(stored(d), 8, |i| {
                    (values[i] * id + 8.5).clamp(0.0, 15.0) as u8
                })
            }
            DType::Q4_1 => {
                let min = values.iter().copied().fold(f32::INFINITY, f32::min);
                let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let d = (max - min) / 15.0;
                let id = inverse(d);
                let quant = |i: usize| ((values[i] - min) * id + 0.5).clamp(0.0, 15.0) as u8;
                Self::even(stored(d), 0, quant).above(stored(min))
            }
            DType::Q8_0 => {
                let most = values.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                let d = most / 127.0;
                let id = inverse(d);
                Self::even(stored(d), 128, |i| {
                    (values[i] * id).round() as i8 as u8 ^ 0x80
                })
            }
            _ => panic!("{dtype:?} is not made by rounding alone"),
        }
    }

    fn halves(scales: [f32; 2], zero: u8, quants: impl Fn(usize) -> u8) -> Self {
        Self {
            quants: std::array::from_fn(quants),
            has_levels: false,
            zero,
            scales,
            leasts: [0.0; 2],
        }
    }

    /// Both halves alike.
    fn even(scale: f32, zero: u8, quants: impl Fn(usize) -> u8) -> Self {
        Self::halves([scale; 2], zero, quants)
    }

    fn above(self, least: f32) -> Self {
        Self {
            leasts: [least; 2],
            ..self
        }
    }

    fn by_levels(self) -> Self {
        Self {
            has_levels: true,
            ..self
        }
    }

    /// The values.
    pub fn values(&self) -> [f32; PIECE] {
        std::array::from_fn(|i| {
            let level = match self.has_levels {
                true => i16::from(LEVELS[usize::from(self.quants[i])]),
                false => i16::from(self.quants[i]) - i16::from(self.zero),
            };
            self.scales[i / 16] * f32::from(level) + self.leasts[i / 16]
        })
    }
}
