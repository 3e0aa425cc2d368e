//! What this machine's arithmetic can do at most at this moment: products whose operands are in
//! registers.

#![allow(
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    reason = "kernels are unsafe as a whole: their pointers cover what their docs say"
)]

use super::amx::{self, TileConfig};
use super::lanes::{LANES, Lanes, kernel};
use super::quants::{self, Nibbles, Quads};
use crate::backend::Isa;
use std::hint::black_box;
use std::time::{Duration, Instant};
use trireme_shared::model::ActivationFormat;

/// Rounds between two looks at the clock.
const ROUNDS: usize = 20_000;
/// How long each is repeated.
const MEASURED: Duration = Duration::from_millis(20);

kernel! {
    /// Vectors of four weights of four bits times one quad; `made` becomes how many products that were.
    fn whole(activations: ActivationFormat, made: *mut u64) = whole_lanes
}

#[inline(always)]
unsafe fn whole_lanes<V: Lanes>(activations: ActivationFormat, made: *mut u64) {
    match activations {
        ActivationFormat::Int16 => whole_quads::<V, quants::Words>(made),
        ActivationFormat::Int8 => whole_quads::<V, quants::Fine>(made),
        // Numbers, one by one.
        ActivationFormat::Bf16 => float_lanes::<V>(made),
    }
}

#[inline(always)]
unsafe fn whole_quads<V: Lanes, A: Quads>(made: *mut u64) {
    // Independent sums: enough to hide an instruction's latency, few enough to stay in registers.
    const SUMS: usize = 5;
    let weights = black_box([3u8; 64]);
    let weights = V::bytes(weights.as_ptr());
    let mut sums = [A::acc::<V>(); SUMS];
    for _ in 0..ROUNDS {
        // Not known beforehand and not alike, so that every product is made.
        let quads = black_box([[1i8; 8]; SUMS]);
        for (sum, quad) in sums.iter_mut().zip(&quads) {
            let quad = A::quad::<V>(quad.as_ptr(), 4, 0);
            *sum = A::dot::<V, Nibbles>(*sum, weights, quad);
        }
    }
    black_box(sums.map(|sum| A::sums::<V, Nibbles>(sum, [0; 2]).sum()));
    *made = (ROUNDS * SUMS * 4 * LANES) as u64;
}

kernel! {
    /// Vectors of floats multiplied and added; `made` becomes how many floats that were.
    fn floats(made: *mut u64) = float_lanes
}

#[inline(always)]
unsafe fn float_lanes<V: Lanes>(made: *mut u64) {
    // As above; narrower registers have two sums in one's place.
    match V::ROWS {
        8.. => float_sums::<V, 10>(made),
        _ => float_sums::<V, 6>(made),
    }
}

#[inline(always)]
unsafe fn float_sums<V: Lanes, const SUMS: usize>(made: *mut u64) {
    let mut sums = [V::zero(); SUMS];
    let weights = V::splat(black_box(1e-3));
    for _ in 0..ROUNDS {
        let value = V::splat(black_box(1e-3));
        for sum in &mut sums {
            *sum = weights.fma(value, *sum);
        }
    }
    black_box(sums.map(|sum| sum.sum()));
    *made = (ROUNDS * SUMS * LANES) as u64;
}

/// Products a second of `threads` threads together: of a weight of four bits and an activation, as
/// this instruction set's kernels do them for many rows. This machine has `isa`.
pub(crate) fn products_per_second(isa: Isa, activations: ActivationFormat, threads: usize) -> f64 {
    per_second(threads, move |made| {
        let tiles = match isa {
            Isa::Amx => TileConfig::load(),
            _ => None,
        };
        match tiles {
            Some(tiles) => *made = amx::products(&tiles, activations, ROUNDS) as u64,
            // SAFETY: the caller says that the instruction set is there.
            None => unsafe { whole(isa, activations, made) },
        }
    })
}

/// Multiplications of f32 a second, with an addition each.
pub(crate) fn float_products_per_second(isa: Isa, threads: usize) -> f64 {
    // SAFETY: as above.
    per_second(threads, move |made| unsafe { floats(isa, made) })
}

/// Of `run`, which says how many it made.
fn per_second(threads: usize, run: impl Fn(&mut u64) + Copy + Send + Sync) -> f64 {
    let rate = || {
        let (begun, mut all, mut made) = (Instant::now(), 0, 0);
        while begun.elapsed() < MEASURED {
            run(&mut made);
            all += made;
        }
        all as f64 / begun.elapsed().as_secs_f64()
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(rate)).collect();
        all.into_iter().map(|one| one.join().unwrap_or(0.0)).sum()
    })
}
