//! Attention's tasks: which queries go together, and what is done with them.

use super::amx::{self, AttentionConfig};
use super::attention::{self, CpuKv, Form, HeadPages, TILE_QUERIES, Tile};
use super::attention_tiles::{self, Next, Query};
use super::pack::BLOCK;
use super::rows::{self, CpuRows, QuantsMut, STRIP_ROWS};
use super::{Cpu, Shared};
use crate::backend::{Isa, Step};
use crate::model::SequenceSlice;
use std::cell::RefCell;
use std::ops::Range;

/// So many products of queries and keys are not worth waking a thread for.
const SERIAL_PRODUCTS_MAX: usize = 32 << 10;

/// Queries of one task: at most so many in a small step, multiples of it in a large one.
/// A task is one tile.
const TASK_QUERIES: usize = 8;
pub(super) const TASK_QUERIES_MAX: usize = TILE_QUERIES;

/// Queries `queries` (row * group + head in group) of one sequence and KV head.
pub(super) struct Task {
    sequence: usize,
    head: usize,
    queries: Range<usize>,
}

/// Queries of a task by lanes. Large tasks read the cache least; small ones keep every thread busy.
pub(super) fn task_queries(step: &Step<'_>, heads: usize, threads: usize) -> usize {
    // To read and widen a page takes about as long as two queries take to meet it.
    const PAGE_QUERIES: usize = 2;
    match all_queries(step, heads) / (4 * threads) {
        _ if threads == 1 => TASK_QUERIES_MAX,
        0..TASK_QUERIES => {
            let time = |size: &usize| {
                let pieces = step.sequences.iter();
                let pieces = pieces.map(|s| queries(step, s).div_ceil(*size));
                let tasks = heads * pieces.sum::<usize>();
                tasks.div_ceil(threads) * (PAGE_QUERIES + size)
            };
            (1..=TASK_QUERIES).min_by_key(time).unwrap_or(1)
        }
        many => (many / TASK_QUERIES * TASK_QUERIES).min(TASK_QUERIES_MAX),
    }
}

/// The same by tiles: whole strips, whose lanes cost the same with queries as without.
pub(super) fn strip_queries(step: &Step<'_>, heads: usize, threads: usize) -> usize {
    let share = all_queries(step, heads) / (4 * threads) / STRIP_ROWS * STRIP_ROWS;
    share.clamp(STRIP_ROWS, attention_tiles::TASK_QUERIES_MAX)
}

fn queries(step: &Step<'_>, slice: &SequenceSlice) -> usize {
    slice.len as usize * step.group
}

fn all_queries(step: &Step<'_>, heads: usize) -> usize {
    let each = step.sequences.iter().map(|slice| queries(step, slice));
    heads * each.sum::<usize>()
}

thread_local! {
    /// Kept from call to call.
    static ROOM: RefCell<Box<attention_tiles::Room>> = RefCell::new(attention_tiles::Room::boxed());
}

/// What all tasks of a step and layer have in common.
struct Attention<'a> {
    isa: Isa,
    step: &'a Step<'a>,
    layer: usize,
    q: &'a CpuRows,
    kv: &'a CpuKv,
    to: Shared<f32>,
    /// Where outputs are quantised, if they are.
    quants: Option<QuantsMut>,
}

impl Attention<'_> {
    fn pages(&self, task: &Task) -> HeadPages {
        let pages = &self.step.sequences[task.sequence].pages;
        HeadPages::new(self.kv, self.step, self.layer, task.head, pages)
    }

    fn queries(&self, task: &Task) -> impl Iterator<Item = Query> {
        let (group, dim) = (self.step.group, self.kv.shape.head_dim);
        let slice = &self.step.sequences[task.sequence];
        let (context, head) = (slice.context as usize, task.head * group);
        let window = self.step.window.unwrap_or(usize::MAX);
        task.queries.clone().map(move |query| {
            let row = slice.first as usize + query / group;
            let at = row * self.q.width + (head + query % group) * dim;
            let limit = context + query / group + 1;
            Query {
                from: self.q.data[at..at + dim].as_ptr(),
                // SAFETY: each query's output is its own, and there as its query is.
                to: unsafe { self.to.slice(at, dim) }.as_mut_ptr(),
                start: limit.saturating_sub(window),
                limit,
            }
        })
    }

    fn by_lanes(&self, tasks: &[Task]) {
        let (group, dim) = (self.step.group, self.kv.shape.head_dim);
        for task in tasks {
            let mut tile = Tile::new(self.pages(task));
            for query in self.queries(task) {
                tile.queries[tile.count] = query.from;
                tile.outputs[tile.count] = query.to;
                tile.starts[tile.count] = query.start;
                tile.limits[tile.count] = query.limit;
                tile.count += 1;
            }
            // SAFETY: pointers and pages are as the tile says (the model checked that pages
            // cover the limits and lie in the cache); the instruction set is checked.
            unsafe { attention::attend(self.isa, &tile) }
            let Some(quants) = self.quants else {
                continue;
            };
            let first_row = self.step.sequences[task.sequence].first as usize;
            for (at, query) in task.queries.clone().enumerate() {
                let first = (task.head * group + query % group) * dim / BLOCK;
                // SAFETY: each query's blocks are its own, and room for them was made.
                unsafe {
                    let (from, row) = (tile.outputs[at], first_row + query / group);
                    rows::quantise(self.isa, from, quants, row, first, dim / BLOCK);
                }
            }
        }
    }

    fn by_tiles(&self, tasks: &[Task]) {
        let Some(config) = AttentionConfig::load() else {
            unreachable!("pages are in tiles only where there is a unit for them");
        };
        let mut queries = Vec::with_capacity(attention_tiles::TASK_QUERIES_MAX);
        for (at, task) in tasks.iter().enumerate() {
            queries.clear();
            queries.extend(self.queries(task));
            let pages = self.pages(task);
            let next = tasks.get(at + 1).and_then(|task| {
                let first = self.queries(task).next()?;
                Some(Next {
                    pages: self.pages(task),
                    start: first.start,
                    limit: first.limit,
                })
            });
            // SAFETY: as in `by_lanes`.
            ROOM.with_borrow_mut(|room| unsafe {
                amx::attend(&config, &pages, &queries, next, room);
            });
        }
    }
}

impl Cpu {
    /// `Backend::attention`.
    pub(super) fn run_attention(
        &mut self,
        step: &Step<'_>,
        q: &CpuRows,
        kv: &CpuKv,
        layer: usize,
        out: &mut CpuRows,
    ) {
        let (heads, dim) = (kv.shape.heads, kv.shape.head_dim);
        assert!(step.window != Some(0), "a query sees itself");
        assert_eq!(q.width, heads * step.group * dim);
        out.reshape(q.rows, q.width);
        let form = self.multiplier.form(q.rows);
        // A strip's rows are several tasks', and share cache lines: whoever needs them quantises them later.
        let quantise = self.quantised && dim.is_multiple_of(BLOCK) && !form.is_in_strips();
        if quantise {
            out.reserve_quants(form);
        }
        let by_tiles = kv.form() == Form::Tiles;
        let size = match by_tiles {
            true => strip_queries(step, heads, self.pool.threads()),
            false => task_queries(step, heads, self.pool.threads()),
        };
        let tasks = &mut self.attention_tasks;
        tasks.clear();
        for (sequence, slice) in step.sequences.iter().enumerate() {
            let all = queries(step, slice);
            for head in 0..heads {
                tasks.extend((0..all).step_by(size).map(|first| Task {
                    sequence,
                    head,
                    queries: first..(first + size).min(all),
                }));
            }
        }
        let products = |s: &SequenceSlice| (s.context + s.len) as usize * s.len as usize * q.width;
        let is_serial = step.sequences.iter().map(products).sum::<usize>() <= SERIAL_PRODUCTS_MAX;
        let attention = Attention {
            isa: self.isa,
            step,
            layer,
            q,
            kv,
            to: Shared(out.data.as_mut_ptr()),
            quants: quantise.then(|| out.quants_mut()),
        };
        let tasks = &self.attention_tasks;
        let attend = |range: Range<usize>| match by_tiles {
            true => attention.by_tiles(&tasks[range]),
            false => attention.by_lanes(&tasks[range]),
        };
        match is_serial {
            true => attend(0..tasks.len()),
            false => self.pool.run(tasks.len(), &attend),
        }
        out.is_quantised = quantise;
    }
}
