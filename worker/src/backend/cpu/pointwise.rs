//! What is done to each row or value between the products: norms, gates, soft caps.

#![allow(
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    reason = "kernels are unsafe as a whole: their pointers cover what their docs say"
)]

use super::lanes::{LANES, Lanes, kernel};
use trireme_shared::model::Activation;

kernel! {
    /// `out = x / sqrt(mean(x^2) + eps) * weight` over `columns` values.
    pub(super) fn norm_row(
        x: *const f32, weight: *const f32, columns: usize, eps: f32, out: *mut f32,
    ) = norm_row_lanes
}

#[inline(always)]
unsafe fn norm_row_lanes<V: Lanes>(
    x: *const f32,
    weight: *const f32,
    columns: usize,
    eps: f32,
    out: *mut f32,
) {
    let whole = columns / LANES * LANES;
    let mut sums = V::zero();
    for at in (0..whole).step_by(LANES) {
        let v = V::load(x.add(at));
        sums = v.fma(v, sums);
    }
    let mut sum = sums.sum();
    for at in whole..columns {
        sum += *x.add(at) * *x.add(at);
    }
    let factor = 1.0 / (sum / columns as f32 + eps).sqrt();
    for at in (0..whole).step_by(LANES) {
        let v = V::load(x.add(at)).mul(V::splat(factor));
        v.mul(V::load(weight.add(at))).store(out.add(at));
    }
    for at in whole..columns {
        *out.add(at) = *x.add(at) * factor * *weight.add(at);
    }
}

kernel! {
    /// `x += delta`, each rounded to f32, over `count` values.
    pub(super) fn add_rounded(x: *mut f32, delta: *const f64, count: usize) = add_rounded_lanes
}

#[inline(always)]
unsafe fn add_rounded_lanes<V: Lanes>(x: *mut f32, delta: *const f64, count: usize) {
    let whole = count / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        let sum = V::load(x.add(at)).add(V::load_f64(delta.add(at)));
        sum.store(x.add(at));
    }
    for at in whole..count {
        *x.add(at) += *delta.add(at) as f32;
    }
}

/// How exactly activations are computed.
pub(super) trait Closeness {
    unsafe fn exp<V: Lanes>(x: V) -> V;
    unsafe fn over<V: Lanes>(x: V, by: V) -> V;
}

/// As far as an f32 can tell.
pub(super) struct Exact;

impl Closeness for Exact {
    #[inline(always)]
    unsafe fn exp<V: Lanes>(x: V) -> V {
        x.exp()
    }
    #[inline(always)]
    unsafe fn over<V: Lanes>(x: V, by: V) -> V {
        x.div(by)
    }
}

/// A tenth of what a bf16 can tell; without a division, which takes as long as ten multiplications.
pub(super) struct Near;

impl Closeness for Near {
    #[inline(always)]
    unsafe fn exp<V: Lanes>(x: V) -> V {
        let power = x.mul(V::splat(std::f32::consts::LOG2_E));
        power.min(V::splat(125.0)).exp2_near()
    }
    #[inline(always)]
    unsafe fn over<V: Lanes>(x: V, by: V) -> V {
        x.mul(by.inverse_near())
    }
}

kernel! {
    /// `gate = activation(gate) * up` over `count` values, a multiple of 16; [`Near`] or [`Exact`].
    pub(super) fn gate_mul(
        activation: Activation, is_near: bool, gate: *mut f32, up: *const f32, count: usize,
    ) = gate_mul_lanes
}

#[inline(always)]
unsafe fn gate_mul_lanes<V: Lanes>(
    activation: Activation,
    is_near: bool,
    gate: *mut f32,
    up: *const f32,
    count: usize,
) {
    for at in (0..count).step_by(LANES) {
        let (gate, up) = (gate.add(at), V::load(up.add(at)));
        let gated = match is_near {
            true => gated::<V, Near>(activation, V::load(gate), up),
            false => gated::<V, Exact>(activation, V::load(gate), up),
        };
        gated.store(gate);
    }
}

/// `activation(gate) * up`.
#[inline(always)]
pub(super) unsafe fn gated<V: Lanes, C: Closeness>(activation: Activation, gate: V, up: V) -> V {
    match activation {
        Activation::Silu => silu::<V, C>(gate).mul(up),
        Activation::GeluTanh => gelu::<V, C>(gate).mul(up),
    }
}

/// x / (1 + e^-x)
#[inline(always)]
unsafe fn silu<V: Lanes, C: Closeness>(x: V) -> V {
    C::over(x, C::exp(V::zero().sub(x)).add(V::splat(1.0)))
}

/// GELU in its tanh form: x / 2 * (1 + tanh(u)) = x / (1 + e^-2u), u = sqrt(2 / pi) * (x + 0.044715 x^3).
#[inline(always)]
unsafe fn gelu<V: Lanes, C: Closeness>(x: V) -> V {
    const CUBE: f32 = 0.044_715;
    // sqrt(2 / pi) = 2 / sqrt(pi) / sqrt(2)
    const FACTOR: f32 = -2.0 * std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;
    let bent = x.mul(x).fma(V::splat(CUBE), V::splat(1.0)).mul(x);
    C::over(x, C::exp(bent.mul(V::splat(FACTOR))).add(V::splat(1.0)))
}

/// `cap * tanh(x / cap)`, where `inverse` is `2 / cap`: tanh(y) = 1 - 2 / (e^2y + 1).
#[inline(always)]
pub(super) unsafe fn capped<V: Lanes>(x: V, cap: V, inverse: V) -> V {
    let power = x.mul(inverse).exp().add(V::splat(1.0));
    V::splat(1.0).sub(V::splat(2.0).div(power)).mul(cap)
}

kernel! {
    /// `x = cap * tanh(x / cap)` over `count` values.
    pub(super) fn soft_cap(x: *mut f32, count: usize, cap: f32) = soft_cap_lanes
}

#[inline(always)]
unsafe fn soft_cap_lanes<V: Lanes>(x: *mut f32, count: usize, cap: f32) {
    let (top, inverse) = (V::splat(cap), V::splat(2.0 / cap));
    let whole = count / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        capped(V::load(x.add(at)), top, inverse).store(x.add(at));
    }
    // The rest by the same lanes, so that a value comes out alike wherever it stands.
    let mut rest = [0f32; LANES];
    std::ptr::copy_nonoverlapping(x.add(whole), rest.as_mut_ptr(), count - whole);
    capped(V::load(rest.as_ptr()), top, inverse).store(rest.as_mut_ptr());
    std::ptr::copy_nonoverlapping(rest.as_ptr(), x.add(whole), count - whole);
}
