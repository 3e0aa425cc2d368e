//! The CPU backend, every operation timed, beside what it cannot do without: weights and keys read,
//! and products.

use super::attention::{CpuKv, Form};
use super::mixture::CpuMixture;
use super::pack::Packed;
use super::rows::{CpuPartial, CpuRows};
use super::{Cpu, Gated};
use crate::backend::{Backend, BackendError, HeadNorms, KvShape, MixtureInput, Step, WeightView};
use std::time::{Duration, Instant};
use trireme_shared::model::{Activation, Mixture, Span};

/// What an operation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Query, key and value projections.
    Projections,
    Attention,
    AttentionOutput,
    GateUp,
    Down,
    /// A mixture's router and all of its experts that were used.
    Experts,
    Logits,
    /// Embedding, norms, rotation, additions.
    Rest,
}

impl Part {
    pub(crate) const ALL: [Self; 8] = [
        Self::Projections,
        Self::Attention,
        Self::AttentionOutput,
        Self::GateUp,
        Self::Down,
        Self::Experts,
        Self::Logits,
        Self::Rest,
    ];
}

/// Of all operations of one part.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) time: Duration,
    /// Read at least once: packed weights, cached keys and values.
    pub(crate) bytes: u64,
    /// Quantised weights times activations, and what else goes by tiles of bf16.
    pub(crate) products: u64,
    /// Float multiplications with an addition each.
    pub(crate) float_products: u64,
}

/// See the module's header.
pub(crate) struct Timed {
    cpu: Cpu,
    tallies: [Tally; Part::ALL.len()],
    /// The last product of an input split by columns was asked for after a gated one.
    gated: bool,
}

impl Timed {
    pub(crate) fn new(cpu: Cpu) -> Self {
        Self {
            cpu,
            tallies: Default::default(),
            gated: false,
        }
    }

    /// What was tallied since the last call, in the order of [`Part::ALL`].
    pub(crate) fn take(&mut self) -> [Tally; Part::ALL.len()] {
        std::mem::take(&mut self.tallies)
    }

    fn timed<T>(&mut self, part: Part, work: Tally, run: impl FnOnce(&mut Cpu) -> T) -> T {
        let begun = Instant::now();
        let out = run(&mut self.cpu);
        let tally = &mut self.tallies[part as usize];
        tally.time += begun.elapsed();
        tally.bytes += work.bytes;
        tally.products += work.products;
        tally.float_products += work.float_products;
        out
    }

    /// Which part a product is that is added to the hidden state.
    fn after_gate(&mut self) -> Part {
        match std::mem::take(&mut self.gated) {
            true => Part::Down,
            false => Part::AttentionOutput,
        }
    }

    fn rest<T>(&mut self, run: impl FnOnce(&mut Cpu) -> T) -> T {
        self.timed(Part::Rest, Tally::default(), run)
    }
}

/// Of a product of `rows` rows.
fn product(rows: usize, matrices: &[&Packed]) -> Tally {
    let mut work = Tally::default();
    for matrix in matrices {
        work.bytes += matrix.bytes() as u64;
        let products = (rows * matrix.rows * matrix.columns) as u64;
        match matrix.format.is_quantised() {
            true => work.products += products,
            false => work.float_products += products,
        }
    }
    work
}

/// Of attention: each query meets every key and value it sees; those of a sequence are read once.
fn attention(step: &Step<'_>, kv: &CpuKv) -> Tally {
    let (mut work, shape) = (Tally::default(), kv.shape);
    let window = step.window.unwrap_or(usize::MAX);
    for slice in step.sequences {
        let (context, len) = (slice.context as usize, slice.len as usize);
        let seen: usize = (context + 1..=context + len).map(|n| n.min(window)).sum();
        let products = (seen * step.group * 2 * shape.heads * shape.head_dim) as u64;
        match kv.form() {
            Form::Halves | Form::Bytes => work.float_products += products,
            Form::Tiles => work.products += products,
        }
        let head_bytes = shape.format.token_bytes(shape.head_dim as u32);
        let tokens = (context + len).min(window.saturating_add(len));
        work.bytes += (tokens * shape.heads) as u64 * head_bytes;
    }
    work
}

impl Backend for Timed {
    type Matrix = Packed;
    type Gated = Gated;
    type Mixture = CpuMixture;
    type Vector = Vec<f32>;
    type Rows = CpuRows;
    type Partial = CpuPartial;
    type Kv = CpuKv;

    fn matrix(&mut self, view: &WeightView<'_>) -> Result<Packed, BackendError> {
        self.cpu.matrix(view)
    }

    fn gated(&mut self, gate: &WeightView<'_>, up: &WeightView<'_>) -> Result<Gated, BackendError> {
        self.cpu.gated(gate, up)
    }

    fn mixture(
        &mut self,
        mixture: Mixture,
        router: &WeightView<'_>,
        norm: &Vec<f32>,
        held: Span,
        experts: Vec<(Gated, Packed)>,
    ) -> Result<CpuMixture, BackendError> {
        self.cpu.mixture(mixture, router, norm, held, experts)
    }

    fn vector(&mut self, view: &WeightView<'_>, offset: f32) -> Result<Vec<f32>, BackendError> {
        self.cpu.vector(view, offset)
    }

    fn kv(&mut self, shape: KvShape) -> Result<CpuKv, BackendError> {
        self.cpu.kv(shape)
    }

    fn rows(&self) -> CpuRows {
        self.cpu.rows()
    }

    fn partial(&self) -> CpuPartial {
        self.cpu.partial()
    }

    fn upload(&mut self, values: &[f32], width: usize, out: &mut CpuRows) {
        self.rest(|cpu| cpu.upload(values, width, out));
    }

    fn values<'a>(&mut self, rows: &'a mut CpuRows) -> &'a mut [f32] {
        self.cpu.values(rows)
    }

    fn partial_values<'a>(&mut self, partial: &'a mut CpuPartial) -> &'a mut [f64] {
        self.cpu.partial_values(partial)
    }

    fn embed(&mut self, table: &Packed, vocab: Span, tokens: &[u32], out: &mut CpuPartial) {
        self.rest(|cpu| cpu.embed(table, vocab, tokens, out));
    }

    fn rms_norm(&mut self, x: &CpuRows, weight: &Vec<f32>, eps: f32, out: &mut CpuRows) {
        self.rest(|cpu| cpu.rms_norm(x, weight, eps, out));
    }

    fn linear(&mut self, x: &mut CpuRows, outputs: &mut [(&Packed, &mut CpuRows)]) {
        let matrices: Vec<&Packed> = outputs.iter().map(|(matrix, _)| *matrix).collect();
        let part = match matrices.len() {
            1 => Part::Logits,
            _ => Part::Projections,
        };
        let work = product(x.rows, &matrices);
        self.timed(part, work, |cpu| cpu.linear(x, outputs));
    }

    fn linear_partial(
        &mut self,
        x: &mut CpuRows,
        matrix: &Packed,
        segment: usize,
        out: &mut CpuPartial,
    ) {
        let (part, work) = (self.after_gate(), product(x.rows, &[matrix]));
        self.timed(part, work, |cpu| {
            cpu.linear_partial(x, matrix, segment, out)
        });
    }

    fn linear_add(&mut self, x: &mut CpuRows, matrix: &Packed, segment: usize, sum: &mut CpuRows) {
        let (part, work) = (self.after_gate(), product(x.rows, &[matrix]));
        self.timed(part, work, |cpu| cpu.linear_add(x, matrix, segment, sum));
    }

    fn add_bias(&mut self, x: &mut CpuRows, bias: &Vec<f32>) {
        self.rest(|cpu| cpu.add_bias(x, bias));
    }

    fn rope_append(
        &mut self,
        step: &Step<'_>,
        norms: Option<HeadNorms<'_, Vec<f32>>>,
        q: &mut CpuRows,
        k: &CpuRows,
        v: &CpuRows,
        kv: &mut CpuKv,
        layer: usize,
    ) {
        self.rest(|cpu| cpu.rope_append(step, norms, q, k, v, kv, layer));
    }

    fn attention(
        &mut self,
        step: &Step<'_>,
        q: &CpuRows,
        kv: &CpuKv,
        layer: usize,
        out: &mut CpuRows,
    ) {
        let work = attention(step, kv);
        self.timed(Part::Attention, work, |cpu| {
            cpu.attention(step, q, kv, layer, out);
        });
    }

    fn gated_ffn(
        &mut self,
        x: &mut CpuRows,
        weights: &Gated,
        activation: Activation,
        out: &mut CpuRows,
    ) {
        self.gated = true;
        let work = product(x.rows, &[&weights.gate, &weights.up]);
        self.timed(Part::GateUp, work, |cpu| {
            cpu.gated_ffn(x, weights, activation, out);
        });
    }

    fn mixture_ffn(
        &mut self,
        input: MixtureInput<'_, CpuRows>,
        weights: &CpuMixture,
        activation: Activation,
        segment: usize,
        out: &mut CpuPartial,
    ) {
        self.timed(Part::Experts, Tally::default(), |cpu| {
            cpu.mixture_ffn(input, weights, activation, segment, out);
        });
        // Known only now: products of every route, and the bytes of every expert that has one.
        let (routes, experts) = self.cpu.routing.counts();
        let (work, matrices) = (product(routes, &weights.matrices()), weights.matrices());
        let tally = &mut self.tallies[Part::Experts as usize];
        tally.bytes += (experts * matrices.iter().map(|w| w.bytes()).sum::<usize>()) as u64;
        tally.products += work.products;
        tally.float_products += work.float_products;
    }

    fn round(&mut self, partial: &CpuPartial, scale: f32, out: &mut CpuRows) {
        self.rest(|cpu| cpu.round(partial, scale, out));
    }

    fn add(&mut self, x: &mut CpuRows, delta: &CpuPartial) {
        self.rest(|cpu| cpu.add(x, delta));
    }

    fn add_rows(&mut self, x: &mut CpuRows, delta: &CpuRows) {
        self.rest(|cpu| cpu.add_rows(x, delta));
    }

    fn soft_cap(&mut self, x: &mut CpuRows, cap: f32) {
        self.rest(|cpu| cpu.soft_cap(x, cap));
    }

    fn select(&mut self, x: &CpuRows, rows: &[u32], out: &mut CpuRows) {
        self.rest(|cpu| cpu.select(x, rows, out));
    }
}
