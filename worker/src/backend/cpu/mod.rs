//! The CPU backend: quantised activations times packed weights, on a pool of threads.
//!
//! | file | what |
//! |---|---|
//! | `lanes/` | sixteen f32 at once, per instruction set |
//! | `memory` | huge pages for weights and KV |
//! | `pack` | the order of weights in memory |
//! | `quants` | the quantised formats: bits, scales, products |
//! | `rows` | activations and their form in bytes |
//! | `pointwise` | norm, gates, soft caps |
//! | `mixture` | routes through experts |
//! | `matmul` | products by lanes |
//! | `tiles`, `amx/` | products of several rows by tiles |
//! | `bf16` | products of activations and weights in bf16 by tiles |
//! | `multiply` | which of them when |
//! | `attention` | paged KV, RoPE, attention by lanes |
//! | `attention_tiles` | attention by tiles of bf16 |
//! | `attention_tasks` | which queries go together |
//! | `pool` | threads |
//! | `timed`, `peak` | how long each operation takes, and what the machine could do |
//!
//! Every product and every attention query sums in the same order whatever the number of threads
//! or of rows beside it: a sequence's results do not depend, to the last bit, on what it is
//! batched with.

mod amx;
mod attention;
mod attention_tasks;
#[cfg(test)]
mod attention_tests;
mod attention_tiles;
mod bf16;
mod lanes;
mod matmul;
mod memory;
mod mixture;
mod multiply;
mod pack;
pub(crate) mod peak;
mod pointwise;
mod pool;
mod quants;
mod rows;
#[cfg(test)]
mod tests;
mod tiles;
pub(crate) mod timed;

use super::{Backend, BackendError, HeadNorms, Isa, KvShape, MixtureInput, Step, WeightView};
use attention::{CpuKv, Slot};
use attention_tasks::Task;
use matmul::{GroupSums, ROWS_MAX, Sums};
use mixture::{CpuMixture, Routing};
use multiply::{Kernels, Multiplier};
use pack::{BLOCK, Packed, TILE};
use pool::Pool;
use rows::{CpuPartial, CpuRows, Form, QuantsMut, STRIP_ROWS};
use std::ops::Range;
use trireme_shared::limits::HEAD_DIM_MAX;
use trireme_shared::model::{Activation, ActivationFormat, Mixture, Span};

/// Fewer values than this are not worth waking a thread for.
const SERIAL_VALUES_MAX: usize = 8 << 10;

/// See the module's header.
pub struct Cpu {
    isa: Isa,
    multiplier: Multiplier,
    pool: Pool,
    arena: memory::Arena,
    /// Some matrix takes activations in bytes, so that producing them at once pays.
    quantised: bool,
    /// Some matrix takes them as they are.
    has_floats: bool,
    attention_tasks: Vec<Task>,
    routing: Routing,
}

/// Gate and up projections.
pub struct Gated {
    gate: Packed,
    up: Packed,
}

impl Gated {
    /// Group `group` of `activation(x * gate^T) * (x * up^T)` into rows `rows` of `out`.
    ///
    /// # Safety
    /// No other task touches this group's columns in these rows, `out` has such rows, and the machine
    /// has `isa`.
    #[allow(clippy::too_many_arguments)]
    unsafe fn run_group(
        &self,
        isa: Isa,
        kernels: &mut Kernels,
        group: usize,
        x: &CpuRows,
        rows: Range<usize>,
        activation: Activation,
        out: GatedRows,
    ) {
        let columns = self.gate.group_rows(group);
        let count = columns.len();
        let vectors = count.next_multiple_of(TILE);
        // SAFETY: the places are this task's.
        let values = unsafe { out.data.sums(out.width, rows.start, columns.start) };
        let to = (out.has_values.then_some(values), out.quants);
        let both = [&self.gate, &self.up];
        // SAFETY: as above.
        if unsafe { kernels.gate_by_strips(both, group, x, rows.clone(), activation, to) } {
            return;
        }
        let is_near = x.is_quantised && x.form.activations == ActivationFormat::Bf16;
        for first in rows.clone().step_by(ROWS_MAX) {
            let chunk = first..(first + ROWS_MAX).min(rows.end);
            let (mut gates, mut ups) = (GroupSums::new(), GroupSums::new());
            // SAFETY: the places are this task's; buffers have room for a group, of which whole tiles were just
            // multiplied. A group starts at a whole block, and where the width is whole blocks it ends at one.
            unsafe {
                let to = values.at_row(first - rows.start);
                let is_whole = count == vectors;
                let (gated, ups) = (if is_whole { to } else { gates.sums() }, ups.sums());
                kernels.multiply(&self.gate, group, x, chunk.clone(), gated);
                kernels.multiply(&self.up, group, x, chunk.clone(), ups);
                for (at, row) in chunk.enumerate() {
                    let (gate, up) = (gated.row(at), ups.row(at));
                    pointwise::gate_mul(isa, activation, is_near, gate, up, vectors);
                    if !is_whole {
                        std::ptr::copy_nonoverlapping(gate, to.row(at), count);
                    }
                    if let Some(quants) = out.quants {
                        let (first, blocks) = (columns.start / BLOCK, count / BLOCK);
                        rows::quantise(isa, to.row(at), quants, row, first, blocks);
                    }
                }
            }
        }
    }
}

/// Where gated activations go, for several tasks at once.
#[derive(Clone, Copy)]
struct GatedRows {
    width: usize,
    data: Shared<f32>,
    /// Somebody takes them as they are, and not quantised. (They may be there in any case.)
    has_values: bool,
    quants: Option<QuantsMut>,
}

impl GatedRows {
    /// `rows` has its shape; they are to be quantised where asked for, and then need not be there otherwise
    /// unless asked for, too.
    fn new(rows: &mut CpuRows, quantise: Option<Form>, has_values: bool) -> Self {
        if let Some(form) = quantise {
            rows.reserve_quants(form);
        }
        Self {
            width: rows.width,
            data: Shared(rows.data.as_mut_ptr()),
            has_values: has_values || quantise.is_none(),
            quants: quantise.map(|_| rows.quants_mut()),
        }
    }
}

/// Output of a region: tasks write places of their own.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);

// SAFETY: a plain pointer; each use says why its tasks do not overlap.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// # Safety
    /// The range lies in the buffer and no other task touches it.
    #[allow(clippy::mut_from_ref)]
    unsafe fn slice(&self, at: usize, length: usize) -> &mut [T] {
        // SAFETY: by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), length) }
    }

    /// The place of a column in rows of `width` values, from a row on.
    ///
    /// # Safety
    /// They lie in the buffer.
    unsafe fn sums(&self, width: usize, row: usize, column: usize) -> Sums<T> {
        Sums {
            // SAFETY: by this function's contract.
            at: unsafe { self.0.add(row * width + column) },
            pitch: width,
            is_room: false,
        }
    }
}

/// Whether this machine has AMX and this process may use it.
pub(super) fn amx_available() -> bool {
    amx::available()
}

/// From how many rows on AMX multiplies faster than VNNI on this machine, which has it; none if it
/// never does. Measured when first asked for.
pub(crate) fn amx_rows_min(activations: ActivationFormat) -> Option<usize> {
    multiply::tiles_win_from(activations)
}

impl Cpu {
    /// # Errors
    /// If `isa` is not one this machine has, or threads cannot be started.
    pub fn new(
        isa: Isa,
        threads: usize,
        activations: ActivationFormat,
    ) -> Result<Self, BackendError> {
        if !isa.available() {
            return Err(BackendError::Unsupported(format!(
                "this machine cannot run {} kernels; use {}",
                isa.name(),
                Isa::detect().name()
            )));
        }
        Ok(Self {
            isa,
            multiplier: Multiplier::new(isa, activations),
            pool: Pool::new(threads).map_err(BackendError::Threads)?,
            arena: memory::Arena::default(),
            quantised: false,
            has_floats: false,
            attention_tasks: Vec::new(),
            routing: Routing::default(),
        })
    }

    /// Calls `each` for every row, on all threads where that pays.
    fn for_rows(&mut self, rows: usize, width: usize, each: &(dyn Fn(usize) + Sync)) {
        if rows * width <= SERIAL_VALUES_MAX {
            (0..rows).for_each(each);
        } else {
            self.pool.run(rows, &|range| range.for_each(each));
        }
    }

    /// Calls `each` for the rows of every strip, on all threads where that pays.
    fn for_strips(&mut self, rows: usize, width: usize, each: &(dyn Fn(Range<usize>) + Sync)) {
        self.for_rows(rows.div_ceil(STRIP_ROWS), STRIP_ROWS * width, &|strip| {
            let first = strip * STRIP_ROWS;
            each(first..(first + STRIP_ROWS).min(rows));
        });
    }

    /// Calls `each` for every one of `groups` groups of weights and every chunk of the rows that it meets, on
    /// all threads.
    fn for_groups(
        &mut self,
        x: &CpuRows,
        groups: usize,
        each: &(dyn Fn(&mut Kernels, usize, Range<usize>) + Sync),
    ) {
        let (multiplier, most) = (self.multiplier, Multiplier::rows_max(x));
        self.pool.run(x.rows.div_ceil(most) * groups, &|tasks| {
            let mut kernels = multiplier.start(x);
            for task in tasks {
                let first = task / groups * most;
                let rows = first..(first + most).min(x.rows);
                each(&mut kernels, task % groups, rows);
            }
        });
    }

    fn quantise_rows(&mut self, x: &mut CpuRows) {
        if x.is_quantised {
            return;
        }
        x.reserve_quants(self.multiplier.form(x.rows));
        let (to, blocks, isa) = (x.quants_mut(), x.width / BLOCK, self.isa);
        let (data, width) = (&x.data, x.width);
        let rows = x.rows;
        if x.form.is_in_strips() {
            self.for_strips(rows, width, &|strip| {
                let from = data[strip.start * width..].as_ptr();
                // SAFETY: there are so many rows, room was made, strips are apart, and `new` checked the
                // instruction set.
                unsafe { rows::quantise_strip(isa, from, to, strip.start, strip.len()) }
            });
        } else {
            self.for_rows(rows, width, &|row| {
                let from = data[row * width..(row + 1) * width].as_ptr();
                // SAFETY: the row has `blocks` blocks, room was made, rows are apart, and `new`
                // checked the instruction set.
                unsafe { rows::quantise(isa, from, to, row, 0, blocks) }
            });
        }
        x.is_quantised = true;
    }

    /// Whether rows of this width are quantised where they are made.
    fn quantises(&self, width: usize) -> bool {
        self.quantised && width.is_multiple_of(BLOCK)
    }

    fn note_format(&mut self, packed: &Packed) {
        match packed.format.is_quantised() {
            true => self.quantised = true,
            false => self.has_floats = true,
        }
    }
}

impl Backend for Cpu {
    type Matrix = Packed;
    type Gated = Gated;
    type Mixture = CpuMixture;
    type Vector = Vec<f32>;
    type Rows = CpuRows;
    type Partial = CpuPartial;
    type Kv = CpuKv;

    fn matrix(&mut self, view: &WeightView<'_>) -> Result<Packed, BackendError> {
        let packed = Packed::new(view, &mut self.arena, &mut self.pool)?;
        self.note_format(&packed);
        Ok(packed)
    }

    fn gated(&mut self, gate: &WeightView<'_>, up: &WeightView<'_>) -> Result<Gated, BackendError> {
        if (gate.rows, gate.columns) != (up.rows, up.columns) {
            return Err(BackendError::Unsupported(
                "the gate and up projections differ in shape".into(),
            ));
        }
        let (gate, up) = Packed::pair(gate, up, &mut self.arena, &mut self.pool)?;
        self.note_format(&gate);
        self.note_format(&up);
        Ok(Gated { gate, up })
    }

    fn vector(&mut self, view: &WeightView<'_>, offset: f32) -> Result<Vec<f32>, BackendError> {
        let values = (0..view.rows).flat_map(|row| view.row_f32(row));
        Ok(values.map(|v| v + offset).collect())
    }

    fn kv(&mut self, shape: KvShape) -> Result<CpuKv, BackendError> {
        CpuKv::new(shape, self.multiplier.has_strips())
    }

    fn rows(&self) -> CpuRows {
        CpuRows::default()
    }

    fn partial(&self) -> CpuPartial {
        CpuPartial::default()
    }

    fn partial_values<'a>(&mut self, partial: &'a mut CpuPartial) -> &'a mut [f64] {
        &mut partial.data
    }

    fn upload(&mut self, values: &[f32], width: usize, out: &mut CpuRows) {
        assert_eq!(values.len() % width, 0);
        out.reshape(values.len() / width, width);
        out.data.copy_from_slice(values);
    }

    fn values<'a>(&mut self, rows: &'a mut CpuRows) -> &'a mut [f32] {
        rows.is_quantised = false;
        &mut rows.data
    }

    fn embed(&mut self, table: &Packed, vocab: Span, tokens: &[u32], out: &mut CpuPartial) {
        let width = table.columns;
        out.reshape(tokens.len(), width);
        let to = Shared(out.data.as_mut_ptr());
        self.for_rows(tokens.len(), width, &|row| {
            // SAFETY: each task has rows of its own.
            let out = unsafe { to.slice(row * width, width) };
            match tokens[row] {
                token if vocab.range().contains(&(token as usize)) => {
                    table.unpack_row((token - vocab.start) as usize, out);
                }
                _ => out.fill(0.0),
            }
        });
    }

    fn rms_norm(&mut self, x: &CpuRows, weight: &Vec<f32>, eps: f32, out: &mut CpuRows) {
        let (width, isa) = (x.width, self.isa);
        assert_eq!(weight.len(), width);
        out.reshape(x.rows, width);
        let quantise = self.quantises(width);
        if quantise {
            out.reserve_quants(self.multiplier.form(x.rows));
        }
        let (data, quants) = (Shared(out.data.as_mut_ptr()), out.quants_mut());
        let in_strips = quantise && out.form.is_in_strips();
        let normalise = |row: usize| {
            let from = x.data[row * width..(row + 1) * width].as_ptr();
            // SAFETY: input, weight and output have `width` values, rows are apart, room for the
            // quantised form was made where it is written, and the instruction set is checked.
            unsafe {
                let to = data.slice(row * width, width).as_mut_ptr();
                pointwise::norm_row(isa, from, weight.as_ptr(), width, eps, to);
                if quantise && !in_strips {
                    rows::quantise(isa, to, quants, row, 0, width / BLOCK);
                }
            }
        };
        if in_strips {
            self.for_strips(x.rows, width, &|strip| {
                strip.clone().for_each(normalise);
                // SAFETY: as above, and strips are apart.
                unsafe {
                    let from = data.slice(strip.start * width, strip.len() * width);
                    rows::quantise_strip(isa, from.as_ptr(), quants, strip.start, strip.len());
                }
            });
        } else {
            self.for_rows(x.rows, width, &normalise);
        }
        out.is_quantised = quantise;
    }

    fn linear(&mut self, x: &mut CpuRows, outputs: &mut [(&Packed, &mut CpuRows)]) {
        if outputs.iter().any(|(w, _)| w.format.is_quantised()) {
            self.quantise_rows(x);
        }
        let x = &*x;
        let mut groups = 0;
        let targets: Vec<(&Packed, Shared<f32>, usize)> = outputs
            .iter_mut()
            .map(|(w, out)| {
                out.reshape(x.rows, w.rows);
                groups += w.groups();
                (*w, Shared(out.data.as_mut_ptr()), groups)
            })
            .collect();
        self.for_groups(x, groups, &|kernels, index, rows| {
            let at = targets.partition_point(|t| t.2 <= index);
            let (w, to, end) = &targets[at];
            let group = index + w.groups() - end;
            // SAFETY: the columns of this group in these rows are this call's.
            unsafe {
                let to = to.sums(w.rows, rows.start, w.group_rows(group).start);
                kernels.multiply(w, group, x, rows, to);
            }
        });
    }

    fn linear_partial(
        &mut self,
        x: &mut CpuRows,
        matrix: &Packed,
        segment: usize,
        out: &mut CpuPartial,
    ) {
        if matrix.format.is_quantised() {
            self.quantise_rows(x);
        }
        let (x, segment) = (&*x, matrix.segment_blocks(segment));
        out.reshape(x.rows, matrix.rows);
        let to = Shared(out.data.as_mut_ptr());
        self.for_groups(x, matrix.groups(), &|kernels, group, rows| {
            // SAFETY: as in `linear`.
            unsafe {
                let to = to.sums(matrix.rows, rows.start, matrix.group_rows(group).start);
                kernels.multiply_wide(matrix, group, x, rows, segment, to);
            }
        });
    }

    fn linear_add(&mut self, x: &mut CpuRows, matrix: &Packed, segment: usize, sum: &mut CpuRows) {
        assert!(sum.rows == x.rows && sum.width == matrix.rows);
        sum.is_quantised = false;
        if matrix.format.is_quantised() {
            self.quantise_rows(x);
        }
        let (x, segment) = (&*x, matrix.segment_blocks(segment));
        let to = Shared(sum.data.as_mut_ptr());
        self.for_groups(x, matrix.groups(), &|kernels, group, rows| {
            // SAFETY: as in `linear`.
            unsafe {
                let to = to.sums(matrix.rows, rows.start, matrix.group_rows(group).start);
                kernels.add(matrix, group, x, rows, segment, to);
            }
        });
    }

    fn add_bias(&mut self, x: &mut CpuRows, bias: &Vec<f32>) {
        assert_eq!(bias.len(), x.width);
        x.is_quantised = false;
        let (width, to) = (x.width, Shared(x.data.as_mut_ptr()));
        self.for_rows(x.rows, width, &|row| {
            // SAFETY: each task has rows of its own.
            let x = unsafe { to.slice(row * width, width) };
            x.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        });
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
        let (heads, dim, isa) = (kv.shape.heads, kv.shape.head_dim, self.isa);
        assert_eq!(k.width, heads * dim);
        assert_eq!(v.width, heads * dim);
        assert_eq!(q.width, heads * step.group * dim);
        assert!(k.rows == q.rows && v.rows == q.rows);
        if let Some(norms) = &norms {
            assert!(norms.query.len() == dim && norms.key.len() == dim);
        }
        let normalise = |head: &mut [f32], weight: &[f32], eps: f32| {
            // SAFETY: both have `dim` values, the kernel reads each place before it writes it, and
            // the instruction set is checked.
            unsafe {
                let head = head.as_mut_ptr();
                pointwise::norm_row(isa, head, weight.as_ptr(), dim, eps, head);
            }
        };
        let (q_width, queries, kv) = (q.width, Shared(q.data.as_mut_ptr()), &*kv);
        q.is_quantised = false;
        let half = step.rope.dims as usize / 2;
        self.for_rows(k.rows, q_width + 2 * k.width, &|row| {
            let cosines = &step.cosines[row * half..(row + 1) * half];
            let sines = &step.sines[row * half..(row + 1) * half];
            // SAFETY: each task has rows of its own.
            let query = unsafe { queries.slice(row * q_width, q_width) };
            for head in query.chunks_exact_mut(dim) {
                if let Some(norms) = &norms {
                    normalise(head, norms.query, norms.eps);
                }
                attention::rotate(step.rope, head, cosines, sines);
            }
            let (mut key, mut value) = ([0f32; HEAD_DIM_MAX], [0f32; HEAD_DIM_MAX]);
            for head in 0..heads {
                let at = row * k.width + head * dim;
                key[..dim].copy_from_slice(&k.data[at..at + dim]);
                value[..dim].copy_from_slice(&v.data[at..at + dim]);
                if let Some(norms) = &norms {
                    normalise(&mut key[..dim], norms.key, norms.eps);
                }
                attention::rotate(step.rope, &mut key[..dim], cosines, sines);
                let slot = Slot::of(kv, step, layer, head, row);
                // SAFETY: the model gives no two rows the same token of the same page; nobody
                // reads the cache during this region; the instruction set is checked.
                unsafe { attention::append(isa, slot, key.as_ptr(), value.as_ptr()) }
            }
        });
    }

    fn attention(
        &mut self,
        step: &Step<'_>,
        q: &CpuRows,
        kv: &CpuKv,
        layer: usize,
        out: &mut CpuRows,
    ) {
        self.run_attention(step, q, kv, layer, out);
    }

    fn gated_ffn(
        &mut self,
        x: &mut CpuRows,
        weights: &Gated,
        activation: Activation,
        out: &mut CpuRows,
    ) {
        let (gate, up) = (&weights.gate, &weights.up);
        if gate.format.is_quantised() || up.format.is_quantised() {
            self.quantise_rows(x);
        }
        let (x, isa, width) = (&*x, self.isa, gate.rows);
        let quantise = self.quantises(width);
        out.reshape(x.rows, width);
        let form = quantise.then(|| self.multiplier.form(x.rows));
        let to = GatedRows::new(out, form, self.has_floats);
        self.for_groups(x, gate.groups(), &|kernels, group, rows| {
            // SAFETY: as in `linear`.
            unsafe { weights.run_group(isa, kernels, group, x, rows, activation, to) }
        });
        out.is_quantised = quantise;
    }

    fn mixture(
        &mut self,
        mixture: Mixture,
        router: &WeightView<'_>,
        norm: &Vec<f32>,
        held: Span,
        experts: Vec<(Gated, Packed)>,
    ) -> Result<CpuMixture, BackendError> {
        CpuMixture::new(mixture, router, norm, held, experts)
    }

    fn mixture_ffn(
        &mut self,
        input: MixtureInput<'_, CpuRows>,
        weights: &CpuMixture,
        activation: Activation,
        segment: usize,
        out: &mut CpuPartial,
    ) {
        self.run_mixture(input, weights, activation, segment, out);
    }

    fn round(&mut self, partial: &CpuPartial, scale: f32, out: &mut CpuRows) {
        let width = partial.width;
        out.reshape(partial.rows, width);
        let to = Shared(out.data.as_mut_ptr());
        self.for_rows(partial.rows, width, &|row| {
            // SAFETY: each task has rows of its own.
            let out = unsafe { to.slice(row * width, width) };
            for (out, value) in out.iter_mut().zip(&partial.data[row * width..]) {
                *out = *value as f32 * scale;
            }
        });
    }

    fn add(&mut self, x: &mut CpuRows, delta: &CpuPartial) {
        assert!(x.rows == delta.rows && x.width == delta.width);
        x.is_quantised = false;
        let (isa, width, to) = (self.isa, x.width, Shared(x.data.as_mut_ptr()));
        self.for_rows(delta.rows, width, &|row| {
            let delta = delta.data[row * width..(row + 1) * width].as_ptr();
            // SAFETY: each task has rows of its own; the instruction set is checked.
            unsafe {
                let x = to.slice(row * width, width).as_mut_ptr();
                pointwise::add_rounded(isa, x, delta, width);
            }
        });
    }

    fn add_rows(&mut self, x: &mut CpuRows, delta: &CpuRows) {
        assert!(x.rows == delta.rows && x.width == delta.width);
        x.is_quantised = false;
        let (width, to) = (x.width, Shared(x.data.as_mut_ptr()));
        self.for_rows(delta.rows, width, &|row| {
            // SAFETY: each task has rows of its own.
            let x = unsafe { to.slice(row * width, width) };
            let delta = &delta.data[row * width..];
            x.iter_mut().zip(delta).for_each(|(x, d)| *x += d);
        });
    }

    fn soft_cap(&mut self, x: &mut CpuRows, cap: f32) {
        x.is_quantised = false;
        let (width, isa, to) = (x.width, self.isa, Shared(x.data.as_mut_ptr()));
        self.for_rows(x.rows, width, &|row| {
            // SAFETY: each task has rows of its own; the instruction set is checked.
            unsafe {
                let x = to.slice(row * width, width);
                pointwise::soft_cap(isa, x.as_mut_ptr(), width, cap);
            }
        });
    }

    fn select(&mut self, x: &CpuRows, rows: &[u32], out: &mut CpuRows) {
        out.reshape(rows.len(), x.width);
        for (&row, out) in rows.iter().zip(out.data.chunks_exact_mut(x.width)) {
            let at = row as usize * x.width;
            out.copy_from_slice(&x.data[at..at + x.width]);
        }
    }
}
