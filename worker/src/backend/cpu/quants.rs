//! The quantised formats, as packing, kernels and tiles see them: one [`Shape`] each.
//!
//! A block of 32 columns is eight **vectors** of four columns of sixteen rows. The bits of a vector's
//! bytes lie in one or two planes: in a plane of `width` bits, vector `v` is bits
//! `v * width % 8..` of each of the 64 bytes from `v * width / 8 * 64` on. The planes are followed by
//! the scales of each part, then by its minima: sixteen f16 each, one a row.
//!
//! | format | bits | parts | minimum | holds | bytes of 32 columns (in the file) |
//! |---|---|---|---|---|---|
//! | `Twos` | 2 | 2 | stored | Q2_K | 16 (10.5) |
//! | `Threes` | 2 + 1 | 2 | -4 scales | Q3_K | 16 (13.75) |
//! | `Fours` | 4 | 1 | -8 scales | Q4_0 | 18 (18) |
//! | `Nibbles` | 4 | 1 | stored | Q4_1, Q4_K | 20 (20, 18) |
//! | `Levels` | 4, through a table | 1 | none | IQ4_NL, IQ4_XS | 18 (18, 17) |
//! | `Fives` | 4 + 1 | 1 | stored | Q5_0, Q5_1, Q5_K | 24 (22, 24, 22) |
//! | `Sixes` | 4 + 2 | 2 | -32 scales | Q6_K | 28 (26.25) |
//! | `Bytes` | 8 | 1 | none | Q8_0 | 34 (34) |

#![allow(
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    reason = "kernels are unsafe as a whole: their pointers cover what their docs say"
)]

use super::lanes::Lanes;
use super::pack::TILE;
use trireme_shared::model::blocks::LEVELS;

/// Vectors of a block.
pub(super) const VECTORS: usize = 8;
/// Bytes of a vector.
pub(super) const VECTOR_BYTES: usize = 64;
/// Bytes of one part's scales or minima.
pub(super) const HALVES_BYTES: usize = 2 * TILE;

/// What quant zero stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Least {
    /// An f16 beside each scale.
    Stored,
    /// So many scales.
    Scales(f32),
    /// Nothing to add: products are of signed weights.
    Zero,
}

/// How bytes meet activations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Product {
    /// Below 16.
    Four,
    /// Below 128.
    Seven,
    /// Signed, stored as value + 128.
    Eight,
    /// As `Eight`, what the quant names in [`LEVELS`].
    Level,
}

/// See the module's header.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Shape {
    /// Bits of the first and of the second plane.
    pub(super) low: usize,
    pub(super) high: usize,
    /// Scales of a block: one, or one each of 16 columns.
    pub(super) parts: usize,
    pub(super) least: Least,
    pub(super) product: Product,
}

impl Shape {
    /// A shape of one plane and one part.
    const fn plain(low: usize, least: Least, product: Product) -> Self {
        Self {
            low,
            high: 0,
            parts: 1,
            least,
            product,
        }
    }

    pub(super) const fn scales_at(&self) -> usize {
        (self.low + self.high) * VECTOR_BYTES
    }

    pub(super) const fn minima_at(&self) -> usize {
        self.scales_at() + self.parts * HALVES_BYTES
    }

    pub(super) const fn tile_bytes(&self) -> usize {
        match self.least {
            Least::Stored => self.minima_at() + self.parts * HALVES_BYTES,
            Least::Scales(_) | Least::Zero => self.minima_at(),
        }
    }

    /// Where a plane has row `lane` of `vector`: its first byte of four, and the lowest bit in each.
    const fn place(plane: usize, width: usize, lane: usize, vector: usize) -> (usize, usize) {
        let bit = vector * width;
        (plane + bit / 8 * VECTOR_BYTES + lane * 4, bit % 8)
    }

    /// Puts row `lane` of `vector` into zeroed bits.
    pub(super) fn put(&self, tile: &mut [u8], lane: usize, vector: usize, quants: [u8; 4]) {
        // Four bytes at a time: what is shifted stays within each.
        let quants = u32::from_le_bytes(quants);
        let mask = |width: usize| u32::from_ne_bytes([u8::MAX >> (8 - width); 4]);
        let mut or = |(at, shift): (usize, usize), bits: u32| {
            if let Some(to) = tile[at..].first_chunk_mut::<4>() {
                *to = (u32::from_le_bytes(*to) | bits << shift).to_le_bytes();
            }
        };
        or(
            Self::place(0, self.low, lane, vector),
            quants & mask(self.low),
        );
        if self.high > 0 {
            let place = Self::place(self.low * VECTOR_BYTES, self.high, lane, vector);
            or(place, quants >> self.low & mask(self.high));
        }
    }

    /// The quant of row `lane` and `column`, as `put` put it there.
    pub(super) fn get(&self, tile: &[u8], lane: usize, column: usize) -> u8 {
        let bits = |plane: usize, width: usize| {
            let (at, shift) = Self::place(plane, width, lane, column / 4);
            (tile[at + column % 4] >> shift) & (u8::MAX >> (8 - width))
        };
        match self.high {
            0 => bits(0, self.low),
            _ => bits(0, self.low) | bits(self.low * VECTOR_BYTES, self.high) << self.low,
        }
    }
}

/// A quantised format, for the compiler.
pub(super) trait Quant {
    const SHAPE: Shape;
}

macro_rules! quants {
    ($($name:ident: $shape:expr;)*) => {$(
        pub(super) struct $name;

        impl Quant for $name {
            const SHAPE: Shape = $shape;
        }
    )*};
}

quants! {
    Fours: Shape::plain(4, Least::Scales(-8.0), Product::Four);
    Nibbles: Shape::plain(4, Least::Stored, Product::Four);
    Levels: Shape::plain(4, Least::Zero, Product::Level);
    Bytes: Shape::plain(8, Least::Zero, Product::Eight);
    Fives: Shape { high: 1, ..Shape::plain(4, Least::Stored, Product::Seven) };
    Sixes: Shape { high: 2, parts: 2, ..Shape::plain(4, Least::Scales(-32.0), Product::Seven) };
    Threes: Shape { high: 1, parts: 2, ..Shape::plain(2, Least::Scales(-4.0), Product::Four) };
    Twos: Shape { parts: 2, ..Shape::plain(2, Least::Stored, Product::Four) };
}

/// [`LEVELS`] plus 128.
const RAISED_LEVELS: [u8; 16] = {
    let mut raised = [0; 16];
    let mut at = 0;
    while at < 16 {
        raised[at] = LEVELS[at] as u8 ^ 0x80;
        at += 1;
    }
    raised
};

#[inline(always)]
unsafe fn plane<V: Lanes>(plane: *const u8, width: usize, vector: usize) -> V::Bytes {
    let bit = vector * width;
    let bytes = V::bytes(plane.add(bit / 8 * VECTOR_BYTES));
    match width {
        8 => bytes,
        _ => V::pick(bytes, (bit % 8) as u32, width as u32),
    }
}

/// One vector of a tile's block: quants as the file counts them.
#[inline(always)]
pub(super) unsafe fn quants<V: Lanes, Q: Quant>(tile: *const u8, vector: usize) -> V::Bytes {
    let shape = Q::SHAPE;
    let low = plane::<V>(tile, shape.low, vector);
    if shape.high == 0 {
        return low;
    }
    let high = plane::<V>(tile.add(shape.low * VECTOR_BYTES), shape.high, vector);
    V::join(low, high, shape.low as u32)
}

/// The same, as [`Quads::dot`] takes it.
#[inline(always)]
pub(super) unsafe fn weights<V: Lanes, Q: Quant>(tile: *const u8, vector: usize) -> V::Bytes {
    let quants = quants::<V, Q>(tile, vector);
    match Q::SHAPE.product {
        Product::Level => V::look_up(quants, &RAISED_LEVELS),
        _ => quants,
    }
}

/// What of an activation meets weights: see `rows`.
pub(super) trait Quads {
    type Acc<V: Lanes>: Copy;
    type Quad: Copy;
    const IS_ONE_BYTE: bool;

    unsafe fn acc<V: Lanes>() -> Self::Acc<V>;
    /// The quad from `column` on, a multiple of four.
    unsafe fn quad<V: Lanes>(row: *const i8, width: usize, column: usize) -> Self::Quad;
    /// Adds four columns of products; of a block's at most.
    unsafe fn dot<V: Lanes, Q: Quant>(
        acc: Self::Acc<V>,
        weights: V::Bytes,
        quad: Self::Quad,
    ) -> Self::Acc<V>;
    /// The sums of a block's or a part's products. `totals` are the sums of the block's activation
    /// bytes.
    unsafe fn sums<V: Lanes, Q: Quant>(acc: Self::Acc<V>, totals: [i32; 2]) -> V;
}

/// Both bytes.
pub(super) struct Words;

impl Quads for Words {
    type Acc<V: Lanes> = V::Acc;
    type Quad = [i32; 2];
    const IS_ONE_BYTE: bool = false;

    #[inline(always)]
    unsafe fn acc<V: Lanes>() -> V::Acc {
        V::acc()
    }
    #[inline(always)]
    unsafe fn quad<V: Lanes>(row: *const i8, width: usize, column: usize) -> [i32; 2] {
        V::quad(row, width, column)
    }
    #[inline(always)]
    unsafe fn dot<V: Lanes, Q: Quant>(acc: V::Acc, weights: V::Bytes, quad: [i32; 2]) -> V::Acc {
        match Q::SHAPE.product {
            Product::Four | Product::Seven => V::dot7(acc, weights, quad),
            Product::Eight | Product::Level => V::dot8(acc, weights, quad),
        }
    }
    #[inline(always)]
    unsafe fn sums<V: Lanes, Q: Quant>(acc: V::Acc, totals: [i32; 2]) -> V {
        match Q::SHAPE.product {
            Product::Four | Product::Seven => V::acc7_f32(acc),
            Product::Eight | Product::Level => V::acc8_f32(acc, totals),
        }
    }
}

/// The fine byte alone.
pub(super) struct Fine;

impl Quads for Fine {
    type Acc<V: Lanes> = V::ByteAcc;
    type Quad = i32;
    const IS_ONE_BYTE: bool = true;

    #[inline(always)]
    unsafe fn acc<V: Lanes>() -> V::ByteAcc {
        V::byte_acc()
    }
    #[inline(always)]
    unsafe fn quad<V: Lanes>(row: *const i8, width: usize, column: usize) -> i32 {
        row.add(width + column).cast::<i32>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn dot<V: Lanes, Q: Quant>(acc: V::ByteAcc, weights: V::Bytes, quad: i32) -> V::ByteAcc {
        match Q::SHAPE.product {
            Product::Four => V::byte_dot4(acc, weights, quad),
            Product::Seven => V::byte_dot7(acc, weights, quad),
            Product::Eight | Product::Level => V::byte_dot8(acc, weights, quad),
        }
    }
    #[inline(always)]
    unsafe fn sums<V: Lanes, Q: Quant>(acc: V::ByteAcc, totals: [i32; 2]) -> V {
        match Q::SHAPE.product {
            Product::Four => V::byte_acc4_f32(acc),
            Product::Seven => V::byte_acc7_f32(acc),
            Product::Eight | Product::Level => V::byte_acc8_f32(acc, totals[1]),
        }
    }
}

/// Scales of one part, and what quant zero stands for; zeroes where that is nothing.
#[inline(always)]
pub(super) unsafe fn scale_and_least<V: Lanes, Q: Quant>(tile: *const u8, part: usize) -> (V, V) {
    let shape = Q::SHAPE;
    let at = |from: usize| tile.add(from + part * HALVES_BYTES).cast::<u16>();
    let scale = V::load_f16(at(shape.scales_at()));
    let least = match shape.least {
        Least::Stored => V::load_f16(at(shape.minima_at())),
        Least::Scales(count) => scale.mul(V::splat(count)),
        Least::Zero => V::zero(),
    };
    (scale, least)
}

/// What [`weights`] are multiplied by, and what is added, to be the numbers that they stand for.
#[inline(always)]
pub(super) unsafe fn scale_and_offset<V: Lanes, Q: Quant>(tile: *const u8, part: usize) -> (V, V) {
    let (scale, least) = scale_and_least::<V, Q>(tile, part);
    match Q::SHAPE.product {
        Product::Four | Product::Seven => (scale, least),
        // A power of two: nothing is rounded.
        Product::Eight | Product::Level => (scale, scale.mul(V::splat(-128.0))),
    }
}
