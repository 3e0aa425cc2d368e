//! Mixtures of experts: which rows go through which experts, and what these add up to.
//!
//! Routes are found in f64, from products and in an order that are the same on every instruction set:
//! the ranks of a stage share out the experts, and one that chose otherwise would leave an expert out,
//! or have it counted twice. A layer is three regions however many experts it has: the router, the
//! gates of all chosen experts, their outputs.

#![allow(
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    reason = "the kernel is unsafe as a whole: its pointers cover what its docs say"
)]

use super::lanes::{LANES, Lanes, kernel};
use super::matmul::{GroupSums, ROWS_MAX};
use super::pack::{BLOCK, Packed};
use super::rows::{self, CpuPartial, CpuRows, Form};
use super::{Cpu, Gated, GatedRows, Shared};
use crate::backend::{BackendError, MixtureInput, WeightView};
use std::ops::Range;
use trireme_shared::model::{Activation, Mixture, Span};

/// Experts whose logits one task finds.
const TASK_EXPERTS: usize = 16;

/// A router and this rank's experts.
pub struct CpuMixture {
    mixture: Mixture,
    /// `[experts, hidden]`, each row times the weights of the norm before it.
    router: Vec<f32>,
    /// Which of all they are.
    held: Span,
    /// Of equal shapes.
    experts: Vec<(Gated, Packed)>,
}

impl CpuMixture {
    pub(super) fn new(
        mixture: Mixture,
        router: &WeightView<'_>,
        norm: &[f32],
        held: Span,
        experts: Vec<(Gated, Packed)>,
    ) -> Result<Self, BackendError> {
        let refuse = |what: &str| Err(BackendError::Unsupported(what.into()));
        let Some((first, _)) = experts.first() else {
            return refuse("a rank without an expert");
        };
        let (hidden, ffn) = (norm.len(), first.gate.rows);
        if (router.rows, router.columns) != (mixture.experts as usize, hidden)
            || mixture.used == 0
            || mixture.used > mixture.experts
        {
            return refuse("the router's shape is not the mixture's");
        }
        let fits = |(gated, down): &(Gated, Packed)| {
            let shapes = [&gated.gate, down].map(|w| (w.rows, w.columns));
            shapes == [(ffn, hidden), (hidden, ffn)]
        };
        if held.len() as usize != experts.len() || !experts.iter().all(fits) {
            return refuse("the experts differ in shape");
        }
        let rows = (0..router.rows).flat_map(|row| router.row_f32(row));
        let router = rows.zip(norm.iter().cycle()).map(|(r, n)| r * n).collect();
        Ok(Self {
            mixture,
            router,
            held,
            experts,
        })
    }
}

impl CpuMixture {
    /// Gate, up and down of one expert, which are of equal shapes.
    pub(super) fn matrices(&self) -> [&Packed; 3] {
        let (gated, down) = &self.experts[0];
        [&gated.gate, &gated.up, down]
    }
}

/// One row's way through one of this rank's experts.
#[derive(Clone, Copy)]
struct Route {
    /// Index into `CpuMixture::experts`.
    expert: usize,
    row: usize,
    weight: f64,
    /// Its row among all routes' inputs.
    place: usize,
}

/// Routes of one expert that one task takes through a group.
struct Piece {
    expert: usize,
    routes: Range<usize>,
}

impl Piece {
    /// Places of its routes, one behind the other.
    fn rows(&self, routes: &[Route]) -> Range<usize> {
        let first = routes[self.routes.start].place;
        first..first + self.routes.len()
    }
}

/// A step's routes and activations, kept from step to step.
#[derive(Default)]
pub(super) struct Routing {
    /// Of each row the products with the router's rows, and with itself.
    products: Vec<f64>,
    /// By expert, then by row.
    routes: Vec<Route>,
    pieces: Vec<Piece>,
    /// Inputs and gated activations of each route.
    inputs: CpuRows,
    gated: CpuRows,
}

impl Routing {
    /// How many routes the last step had, and over how many experts.
    pub(super) fn counts(&self) -> (usize, usize) {
        let experts = self.routes.chunk_by(|a, b| a.expert == b.expert);
        (self.routes.len(), experts.count())
    }

    /// Fills `routes` and `pieces` from `products`. An expert's first place is a multiple of `align`.
    fn choose(&mut self, weights: &CpuMixture, width: usize, eps: f32, align: usize) {
        let Mixture {
            experts,
            used,
            normalised,
        } = weights.mixture;
        let (experts, used) = (experts as usize, used as usize);
        let held = weights.held.range();
        let mut order: Vec<usize> = Vec::with_capacity(experts);
        let (routes, pieces) = (&mut self.routes, &mut self.pieces);
        routes.clear();
        for (row, products) in self.products.chunks_exact_mut(experts + 1).enumerate() {
            let (logits, square) = products.split_at_mut(experts);
            let factor = 1.0 / (square[0] / width as f64 + f64::from(eps)).sqrt();
            logits.iter_mut().for_each(|logit| *logit *= factor);
            order.clear();
            order.extend(0..experts);
            // The largest, of equal ones the first.
            let before = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
            order.select_nth_unstable_by(used - 1, before);
            let chosen = &mut order[..used];
            chosen.sort_unstable();
            let most = chosen
                .iter()
                .map(|&e| logits[e])
                .fold(f64::NEG_INFINITY, f64::max);
            let power = |e: usize| (logits[e] - most).exp();
            let sum: f64 = match normalised {
                true => chosen.iter().map(|&e| power(e)).sum(),
                false => (0..experts).map(power).sum(),
            };
            let mine = chosen.iter().filter(|e| held.contains(e));
            routes.extend(mine.map(|&e| Route {
                expert: e - held.start,
                row,
                weight: power(e) / sum,
                place: 0,
            }));
        }
        routes.sort_by_key(|route| route.expert);
        pieces.clear();
        let (mut first, mut place) = (0, 0usize);
        for routes in routes.chunk_by_mut(|a, b| a.expert == b.expert) {
            let (expert, end) = (routes[0].expert, first + routes.len());
            pieces.extend((first..end).step_by(ROWS_MAX).map(|at| Piece {
                expert,
                routes: at..(at + ROWS_MAX).min(end),
            }));
            first = end;
            place = place.next_multiple_of(align);
            for route in routes {
                route.place = place;
                place += 1;
            }
        }
    }

    /// Rows of the routes' inputs, those between experts' included.
    fn rows(&self) -> usize {
        self.routes.last().map_or(0, |route| route.place + 1)
    }
}

impl Cpu {
    /// See `Backend::mixture_ffn`.
    pub(super) fn run_mixture(
        &mut self,
        input: MixtureInput<'_, CpuRows>,
        weights: &CpuMixture,
        activation: Activation,
        segment: usize,
        out: &mut CpuPartial,
    ) {
        let (rows, width) = (input.x.rows, input.x.width);
        assert!(input.normed.rows == rows && input.normed.width == width);
        assert_eq!(
            weights.router.len(),
            weights.mixture.experts as usize * width
        );
        out.reshape(rows, width);
        let mut routing = std::mem::take(&mut self.routing);
        self.route(input.x, weights, &mut routing.products);
        let align = self.multiplier.row_align();
        routing.choose(weights, width, input.eps, align);
        if routing.pieces.is_empty() {
            out.data.fill(0.0);
        } else {
            // Experts meet few rows each.
            let form = self.multiplier.form(most_rows(&routing.pieces));
            self.gather(input.normed, form, weights, &mut routing);
            self.gate_experts(weights, activation, &mut routing);
            self.sum_experts(weights, segment, &routing, out);
        }
        self.routing = routing;
    }

    /// `products = x * router^T`, and each row's square after its products.
    fn route(&mut self, x: &CpuRows, weights: &CpuMixture, products: &mut Vec<f64>) {
        let (isa, width) = (self.isa, x.width);
        let experts = weights.mixture.experts as usize;
        products.resize(x.rows * (experts + 1), 0.0);
        let to = Shared(products.as_mut_ptr());
        let blocks = experts.div_ceil(TASK_EXPERTS);
        // Block by block of the router, which then stays in the caches.
        self.for_rows(blocks * x.rows, TASK_EXPERTS * width, &|task| {
            let (block, row) = (task / x.rows, task % x.rows);
            let first = block * TASK_EXPERTS;
            let count = TASK_EXPERTS.min(experts - first);
            let from = x.data[row * width..(row + 1) * width].as_ptr();
            let router = weights.router[first * width..][..count * width].as_ptr();
            // SAFETY: each task has places of its own, `x`'s row and the router's have `width` values,
            // and `new` checked the instruction set.
            unsafe {
                let at = row * (experts + 1);
                let out = to.slice(at + first, count).as_mut_ptr();
                dots(isa, from, router, width, count, out);
                if block == 0 {
                    let out = to.slice(at + experts, 1).as_mut_ptr();
                    dots(isa, from, from, width, 1, out);
                }
            }
        });
    }

    /// `inputs` becomes the rows of `x` that the routes name.
    fn gather(&mut self, x: &CpuRows, form: Form, weights: &CpuMixture, routing: &mut Routing) {
        let rows = routing.rows();
        let Routing { routes, inputs, .. } = routing;
        let gated = weights.experts.iter().map(|(gated, _)| gated);
        let mut formats = gated.flat_map(|gated| [gated.gate.format, gated.up.format]);
        let is_quantised = formats.clone().any(|f| f.is_quantised());
        let has_floats = formats.any(|f| !f.is_quantised());
        let (width, isa) = (x.width, self.isa);
        inputs.reshape(rows, width);
        if is_quantised {
            inputs.reserve_quants(form);
        }
        let (data, quants) = (Shared(inputs.data.as_mut_ptr()), inputs.quants_mut());
        self.for_rows(routes.len(), width, &|at| {
            let Route { row, place, .. } = routes[at];
            let from = &x.data[row * width..(row + 1) * width];
            // SAFETY: each task has rows of its own, room was made where they are quantised, and the
            // instruction set is checked.
            unsafe {
                if has_floats {
                    data.slice(place * width, width).copy_from_slice(from);
                }
                if is_quantised {
                    rows::quantise(isa, from.as_ptr(), quants, place, 0, width / BLOCK);
                }
            }
        });
        inputs.is_quantised = is_quantised;
    }

    /// `gated = activation(inputs * gate^T) * (inputs * up^T)` of each route's expert.
    fn gate_experts(
        &mut self,
        weights: &CpuMixture,
        activation: Activation,
        routing: &mut Routing,
    ) {
        let rows = routing.rows();
        let Routing {
            routes,
            pieces,
            inputs,
            gated,
            ..
        } = routing;
        let first = &weights.experts[0].0.gate;
        let (width, groups) = (first.rows, first.groups());
        let quantise = self.quantises(width);
        gated.reshape(rows, width);
        let (isa, multiplier) = (self.isa, self.multiplier);
        let form = multiplier.form(most_rows(pieces));
        let out = GatedRows::new(gated, quantise.then_some(form), self.has_floats);
        self.pool.run(pieces.len() * groups, &|tasks| {
            let mut kernels = multiplier.start(inputs);
            for task in tasks {
                let (piece, group) = (&pieces[task / groups], task % groups);
                let gated = &weights.experts[piece.expert].0;
                let rows = piece.rows(routes);
                // SAFETY: this group's columns in rows of this piece are this task's.
                unsafe {
                    gated.run_group(isa, &mut kernels, group, inputs, rows, activation, out);
                }
            }
        });
        gated.is_quantised = quantise;
    }

    /// `out`, of each row, is the sum of `weight * gated * down^T` over its routes, by expert.
    fn sum_experts(
        &mut self,
        weights: &CpuMixture,
        segment: usize,
        routing: &Routing,
        out: &mut CpuPartial,
    ) {
        let (routes, pieces, gated) = (&routing.routes, &routing.pieces, &routing.gated);
        let (rows, width) = (out.rows, out.width);
        let to = Shared(out.data.as_mut_ptr());
        let multiplier = self.multiplier;
        self.pool.run(weights.experts[0].1.groups(), &|groups| {
            let mut kernels = multiplier.start(gated);
            let mut sums = GroupSums::new();
            for group in groups {
                let columns = weights.experts[0].1.group_rows(group);
                // SAFETY: this group's columns are this task's.
                let out =
                    |row: usize| unsafe { to.slice(row * width + columns.start, columns.len()) };
                (0..rows).for_each(|row| out(row).fill(0.0));
                for piece in pieces {
                    let down = &weights.experts[piece.expert].1;
                    let (rows, blocks) = (piece.rows(routes), down.segment_blocks(segment));
                    // SAFETY: the buffer has room for a group.
                    unsafe {
                        let to = sums.sums();
                        kernels.multiply_wide(down, group, gated, rows, blocks, to);
                    }
                    for (at, route) in routes[piece.routes.clone()].iter().enumerate() {
                        // SAFETY: they were just multiplied.
                        let sums = unsafe { sums.row(at, columns.len()) };
                        let both = out(route.row).iter_mut().zip(sums);
                        both.for_each(|(out, sum)| *out += route.weight * *sum);
                    }
                }
            }
        });
    }
}

/// Rows of the largest piece.
fn most_rows(pieces: &[Piece]) -> usize {
    let rows = pieces.iter().map(|piece| piece.routes.len());
    rows.max().unwrap_or(0)
}

kernel! {
    /// Products of `x` and each of `count` rows of `matrix`, `columns` values long. Each value's product
    /// is rounded to f32 and added in f64, in an order that depends on its column only.
    fn dots(
        x: *const f32, matrix: *const f32, columns: usize, count: usize, out: *mut f64,
    ) = dots_lanes
}

#[inline(always)]
unsafe fn dots_lanes<V: Lanes>(
    x: *const f32,
    matrix: *const f32,
    columns: usize,
    count: usize,
    out: *mut f64,
) {
    let whole = columns / LANES * LANES;
    for number in 0..count {
        let row = matrix.add(number * columns);
        let mut sums = [0f64; LANES];
        for at in (0..whole).step_by(LANES) {
            let products = V::load(x.add(at)).mul(V::load(row.add(at)));
            products.add_to_f64(sums.as_mut_ptr());
        }
        for at in whole..columns {
            sums[at - whole] += f64::from(*x.add(at) * *row.add(at));
        }
        *out.add(number) = sums.iter().sum();
    }
}

#[cfg(test)]
#[path = "mixture_tests.rs"]
mod tests;
