//! Encoding and decoding rows of each storage type, one element at a time: the plain reference the
//! kernels are tested against, and what writes test models. [`Piece`] is what packing starts from.
//!
//! Layouts are ggml's (`ggml-common.h`), and so is the rounding of the types without super-blocks
//! (`quantize_row_*_ref` in `ggml-quants.c`); `encode` searches less for the best scales of the
//! others. `shared/tests/blocks/` holds decoding to what the Python package `gguf` says.

mod encode;
mod piece;

use super::DType;
use half::{bf16, f16};
pub use piece::{LEVELS, PIECE, Piece};

/// Encodes `values`, which must be whole blocks.
pub fn encode(dtype: DType, values: &[f32], out: &mut Vec<u8>) {
    match dtype {
        DType::F32 => values.iter().for_each(|x| out.extend(x.to_le_bytes())),
        DType::F16 => values
            .iter()
            .for_each(|x| out.extend(f16::from_f32(*x).to_le_bytes())),
        DType::BF16 => values
            .iter()
            .for_each(|x| out.extend(bf16::from_f32(*x).to_le_bytes())),
        DType::Q4_0 | DType::Q4_1 | DType::Q8_0 => {
            for values in values.as_chunks().0 {
                put_block(dtype, &Piece::nearest(dtype, values), out);
            }
        }
        _ => {
            for block in values.chunks_exact(dtype.block_elements()) {
                out.extend(encode::block(dtype, block));
            }
        }
    }
}

/// A block of one piece, as a file has it.
fn put_block(dtype: DType, piece: &Piece, out: &mut Vec<u8>) {
    let half = |x: f32| f16::from_f32(x).to_le_bytes();
    out.extend(half(piece.scales[0]));
    if dtype == DType::Q4_1 {
        out.extend(half(piece.leasts[0]));
    }
    if dtype == DType::Q8_0 {
        return out.extend(piece.quants.map(|q| q ^ 0x80));
    }
    let (low, high) = piece.quants.split_at(PIECE / 2);
    out.extend(low.iter().zip(high).map(|(a, b)| a | b << 4));
}

/// The first numbers of `bytes`, which are floats.
pub fn floats(dtype: DType, bytes: &[u8]) -> [f32; PIECE] {
    let half = |i: usize| [bytes[2 * i], bytes[2 * i + 1]];
    match dtype {
        DType::F16 => std::array::from_fn(|i| f16::from_le_bytes(half(i)).to_f32()),
        DType::BF16 => std::array::from_fn(|i| bf16::from_le_bytes(half(i)).to_f32()),
        _ => std::array::from_fn(|i| {
            let b = &bytes[4 * i..4 * i + 4];
            f32::from_le_bytes([b[0], b[1], b[2], b[3]])
        }),
    }
}

/// Decodes whole blocks to f32; bytes beyond the last whole block are left out.
pub fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let half = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]).to_f32();
    let blocks = bytes.chunks_exact(dtype.block_bytes());
    let mut out = Vec::with_capacity(blocks.len() * dtype.block_elements());
    for b in blocks {
        match dtype {
            DType::F32 => out.push(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            DType::F16 => out.push(half(b)),
            DType::BF16 => out.push(bf16::from_le_bytes([b[0], b[1]]).to_f32()),
            _ => (0..dtype.block_elements() / PIECE)
                .for_each(|piece| out.extend(Piece::of(dtype, b, piece).values())),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding_gives_back_what_was_encoded_within_half_a_step() {
        let values: Vec<f32> = (0..512)
            .map(|i| ((i * 37 % 64) as f32 - 30.0) / 16.0)
            .collect();
        let range = 4.0;
        for (dtype, step) in [
            (DType::F32, 0.0),
            (DType::F16, range / 2048.0),
            (DType::BF16, range / 256.0),
            (DType::Q4_0, range / 15.0),
            (DType::Q4_1, range / 28.0),
            (DType::Q8_0, range / 250.0),
            (DType::Q5_0, range / 31.0),
            (DType::Q5_1, range / 60.0),
            // The scales are rounded, too.
            (DType::Q2_K, range / 5.0),
            (DType::Q3_K, range / 6.0),
            (DType::Q4_K, range / 26.0),
            (DType::Q5_K, range / 52.0),
            (DType::Q6_K, range / 56.0),
            (DType::IQ4_NL, range / 15.0),
            (DType::IQ4_XS, range / 14.0),
        ] {
            let mut bytes = Vec::new();
            encode(dtype, &values, &mut bytes);
            assert_eq!(Some(bytes.len() as u64), dtype.bytes_of(512));
            let back = decode(dtype, &bytes);
            assert_eq!(back.len(), values.len(), "{dtype:?}");
            for (a, b) in values.iter().zip(&back) {
                assert!((a - b).abs() <= step, "{dtype:?}: {a} became {b}");
            }
        }
        // The halves of a block: low nibbles first.
        let mut bytes = vec![0x00, 0x3c, 0, 0];
        bytes.extend([0x21; 16]);
        let back = decode(DType::Q4_1, &bytes);
        assert_eq!(
            (back[0], back[15], back[16], back[31]),
            (1.0, 1.0, 2.0, 2.0)
        );
    }
}
