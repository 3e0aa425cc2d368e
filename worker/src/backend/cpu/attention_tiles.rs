//! Attention by a unit that multiplies tiles of bf16 (AMX), for activations in bf16.
//!
//! Pages hold keys token by token (`16 tokens x head_dim`) and values dimension by dimension
//! (`head_dim x 16 tokens`), both in bf16, so that rows of a tile are what lies there: nothing is turned round
//! but queries, once, and what comes out. Queries, keys, chances and values are rounded to bf16; scores, the
//! chances' sums and what they weigh are f32.
//!
//! Sixteen queries make a strip, a lane each. Its scores come token by token, so that softmax (online, as in
//! `attention`) takes no step across lanes; pairs of tokens' chances are then what the values' tiles meet. What
//! chances are relative to follows the largest score only where that is [`FAR`] above it (as in
//! FlashAttention-4): sums are multiplied anew a few times in all, and otherwise go through the unit alone.
//!
//! A lane depends on its own query and tokens alone, and blocks begin at fixed positions: a query's
//! result does not depend on what stands beside it. (But for broken numbers: nothing times a value that is
//! no number is none, for every query of the strip.)

#![allow(
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    reason = "kernels are unsafe as a whole: their pointers cover what their docs say"
)]

use super::attention::{HeadPages, UNSEEN};
use super::lanes::{LANES, Lanes, Sums16};
use super::pointwise::capped;
use super::rows::{Line, STRIP_ROWS};
use std::f32::consts::LOG2_E;
use std::mem::MaybeUninit;
use std::ops::Range;
use trireme_shared::limits::{HEAD_DIM_MAX, PAGE_TOKENS};

const _: () = assert!(PAGE_TOKENS == LANES && STRIP_ROWS == LANES);

/// Dimensions that one product of tiles adds up.
const CHUNK: usize = 2 * LANES;
const CHUNKS_MAX: usize = HEAD_DIM_MAX / CHUNK;

/// Sums that the unit holds at once.
pub(super) const SLOTS: usize = 4;

/// Pages that are met at once: for so many sums go to the unit and back once.
const BLOCK_PAGES: usize = 8;

/// Strips of a task: what they weigh together stays in the second-level cache.
const STRIPS_MAX: usize = 8;
/// Queries of a task.
pub(super) const TASK_QUERIES_MAX: usize = STRIPS_MAX * STRIP_ROWS;

/// In powers of two: chances may be so large before they are taken relative to another score. They and
/// their sums are far from what a float can hold.
const FAR: f32 = 8.0;

/// Lines of a page's chances, a pair of tokens each.
const PAGE_LINES: usize = PAGE_TOKENS / 2;

/// Whether heads of so many dimensions are whole tiles.
pub(super) fn takes(dim: usize) -> bool {
    dim.is_multiple_of(CHUNK)
}

/// A unit that multiplies tiles and adds up in [`SLOTS`] sums of sixteen rows, a query a column.
pub(super) trait Unit {
    /// All sums become zero.
    unsafe fn zero(&mut self);
    /// Sixteen lines: of 32 dimensions a pair each, with every query's.
    unsafe fn take_queries(&mut self, from: *const Line);
    /// 32 dimensions of sixteen tokens, `pitch` bytes apart.
    unsafe fn take_keys(&mut self, from: *const u16, pitch: usize);
    /// Adds products of keys and queries.
    unsafe fn score(&mut self, slot: usize);
    /// [`PAGE_LINES`] lines: a pair of tokens each, with every query's chances.
    unsafe fn take_chances(&mut self, from: *const Line);
    /// Sixteen tokens of sixteen dimensions, one behind the other.
    unsafe fn take_values(&mut self, from: *const u16);
    /// Adds products of values and chances.
    unsafe fn weigh(&mut self, slot: usize);
    unsafe fn load(&mut self, slot: usize, from: *const Sums16);
    unsafe fn store(&mut self, slot: usize, to: *mut Sums16);
}

/// One query's head.
#[derive(Clone, Copy)]
pub(super) struct Query {
    /// As many values as a head has dimensions, both.
    pub(super) from: *const f32,
    pub(super) to: *mut f32,
    /// It sees the tokens from here...
    pub(super) start: usize,
    /// ...to before here; at least one.
    pub(super) limit: usize,
}

/// What is known of a strip after some blocks, a lane a query.
#[repr(C, align(64))]
struct Strip {
    queries: [[Line; STRIP_ROWS]; CHUNKS_MAX],
    /// Of each sixteen dimensions.
    sums: [Sums16; HEAD_DIM_MAX / LANES],
    /// What chances are relative to: scores as they come from the unit, or capped.
    tops: [f32; LANES],
    weights: [f32; LANES],
    starts: [f32; LANES],
    limits: [f32; LANES],
}

/// What a thread needs beside its registers.
#[repr(C, align(64))]
pub(super) struct Room {
    strips: MaybeUninit<[Strip; STRIPS_MAX]>,
    work: Work,
    /// Values of a page at either end of what a task sees.
    values: MaybeUninit<[[u16; HEAD_DIM_MAX * PAGE_TOKENS]; 2]>,
    /// Numbers that are turned round, and where to.
    turned: MaybeUninit<[Sums16; 2]>,
}

/// Of a strip and a block.
#[repr(C, align(64))]
struct Work {
    scores: MaybeUninit<[Sums16; BLOCK_PAGES]>,
    chances: MaybeUninit<[[Line; PAGE_LINES]; BLOCK_PAGES]>,
}

impl Work {
    fn scores(&mut self) -> *mut Sums16 {
        self.scores.as_mut_ptr().cast()
    }

    fn chances(&mut self) -> *mut Line {
        self.chances.as_mut_ptr().cast()
    }
}

impl Room {
    pub(super) fn boxed() -> Box<Self> {
        // SAFETY: of all of its parts nothing is initialised.
        unsafe { Box::new_uninit().assume_init() }
    }
}

/// Pages that are met next, of another sequence or head, to be asked for in time.
#[derive(Clone, Copy)]
pub(super) struct Next {
    pub(super) pages: HeadPages,
    /// Tokens that are seen of them.
    pub(super) start: usize,
    pub(super) limit: usize,
}

impl Next {
    /// Page `at` of its first block, if it sees that.
    #[inline(always)]
    unsafe fn page(&self, at: usize) -> Option<*const u8> {
        let seen = pages_of(&(self.start..self.limit));
        let number = seen.start / BLOCK_PAGES * BLOCK_PAGES + at;
        match seen.contains(&number) {
            true => Some(self.pages.page(number)),
            false => None,
        }
    }
}

/// Pages of a block, and where each one's parts are.
struct Block {
    /// Of them all pages between the task's first and last.
    pages: Range<usize>,
    keys: [*const u16; BLOCK_PAGES],
    /// Where nobody sees some of the tokens, these are zero.
    values: [*const u16; BLOCK_PAGES],
    /// Of each page the one that is read a block later, if any is.
    next: [Option<*const u8>; BLOCK_PAGES],
}

/// Fills the outputs of up to [`TASK_QUERIES_MAX`] queries of the sequence and KV head that `pages` are of, in
/// order of position. [`takes`] says yes to their dimensions. `next` are those that this thread turns to then.
#[inline(always)]
pub(super) unsafe fn attend<V: Lanes, U: Unit>(
    unit: &mut U,
    pages: &HeadPages,
    queries: &[Query],
    next: Option<Next>,
    room: &mut Room,
) {
    debug_assert!(queries.len() <= TASK_QUERIES_MAX && takes(pages.dim()));
    let Room {
        strips,
        work,
        values,
        turned,
    } = room;
    let strips = strips.as_mut_ptr().cast::<Strip>();
    let turned = turned.as_mut_ptr().cast::<Sums16>();
    for (at, queries) in queries.chunks(STRIP_ROWS).enumerate() {
        begin::<V>(pages, queries, strips.add(at), turned);
    }
    // Queries stand in order of position, so no window begins before the first one's, and none ends
    // after the last one's.
    let seen = queries[0].start..queries[queries.len() - 1].limit;
    let blocks = pages_of(&seen).start / BLOCK_PAGES..pages_of(&seen).end.div_ceil(BLOCK_PAGES);
    for number in blocks {
        let block = Block::of::<V>(pages, number, &seen, next, values.as_mut_ptr().cast());
        for (at, queries) in queries.chunks(STRIP_ROWS).enumerate() {
            let (first, last) = (queries[0], queries[queries.len() - 1]);
            let mine = pages_of(&(first.start..last.limit));
            let part = Part {
                block: &block,
                pages: mine.start.max(block.pages.start)..mine.end.min(block.pages.end),
                whole: last.start..first.limit,
                asks: at == 0,
            };
            if !part.pages.is_empty() {
                meet::<V, U>(unit, pages, &part, &mut *strips.add(at), work);
            }
        }
    }
    for (at, queries) in queries.chunks(STRIP_ROWS).enumerate() {
        finish::<V>(pages, queries, &*strips.add(at), turned);
    }
}

fn pages_of(tokens: &Range<usize>) -> Range<usize> {
    tokens.start / PAGE_TOKENS..tokens.end.div_ceil(PAGE_TOKENS)
}

fn tokens_of(page: usize) -> Range<usize> {
    page * PAGE_TOKENS..(page + 1) * PAGE_TOKENS
}

impl Block {
    /// Block `number` of what a task sees; there is room for the values of two pages.
    #[inline(always)]
    unsafe fn of<V: Lanes>(
        pages: &HeadPages,
        number: usize,
        seen: &Range<usize>,
        next: Option<Next>,
        values: *mut u16,
    ) -> Self {
        let all = pages_of(seen);
        let start = number * BLOCK_PAGES;
        let mine = start.max(all.start)..(start + BLOCK_PAGES).min(all.end);
        let mut block = Self {
            pages: mine.clone(),
            keys: [std::ptr::null(); BLOCK_PAGES],
            values: [std::ptr::null(); BLOCK_PAGES],
            next: [None; BLOCK_PAGES],
        };
        for page in mine {
            let (head, at) = (pages.page(page), page - start);
            block.keys[at] = head.cast();
            block.values[at] = pages.values_of(head).cast();
            block.next[at] = match page + BLOCK_PAGES {
                later if later < all.end => Some(pages.page(later)),
                _ => next.and_then(|next| next.page(at)),
            };
            let tokens = tokens_of(page);
            if tokens.start < seen.start || seen.end < tokens.end {
                // Of tokens that nobody sees there may be anything.
                let end = usize::from(seen.end < tokens.end);
                let to = values.add(end * HEAD_DIM_MAX * PAGE_TOKENS);
                let seen = seen.start.max(tokens.start)..seen.end.min(tokens.end);
                let seen = seen.start - tokens.start..seen.end - tokens.start;
                copy_seen::<V>(block.values[at], pages.dim(), &seen, to);
                block.values[at] = to;
            }
        }
        block
    }
}

/// A page's values of the tokens in `seen`, and zeroes of others.
#[inline(always)]
unsafe fn copy_seen<V: Lanes>(from: *const u16, dim: usize, seen: &Range<usize>, to: *mut u16) {
    let tokens: [f32; LANES] = std::array::from_fn(|token| token as f32);
    let tokens = V::load(tokens.as_ptr());
    let (start, end) = (V::splat(seen.start as f32), V::splat(seen.end as f32));
    for at in (0..dim * PAGE_TOKENS).step_by(LANES) {
        let values = V::load_bf16(from.add(at));
        V::between(tokens, start, end, values, V::zero()).store_bf16(to.add(at));
    }
}

/// A strip of at most sixteen queries before its first block.
#[inline(always)]
unsafe fn begin<V: Lanes>(
    pages: &HeadPages,
    queries: &[Query],
    strip: *mut Strip,
    turned: *mut Sums16,
) {
    let dim = pages.dim();
    let (rows, columns) = (turned, turned.add(1));
    // Lanes without a query see nothing.
    (*rows).0 = [[0.0; LANES]; LANES];
    (*strip).starts = [0.0; LANES];
    (*strip).limits = [0.0; LANES];
    for (lane, query) in queries.iter().enumerate() {
        (*strip).starts[lane] = query.start as f32;
        (*strip).limits[lane] = query.limit as f32;
    }
    let lines = (&raw mut (*strip).queries).cast::<Line>();
    for first in (0..dim).step_by(LANES) {
        for (query, row) in queries.iter().zip(&mut (*rows).0) {
            V::load(query.from.add(first)).store(row.as_mut_ptr());
        }
        V::transpose(rows, columns);
        for pair in 0..LANES / 2 {
            let values = &(*columns).0;
            let one = V::load(values[2 * pair].as_ptr());
            let other = V::load(values[2 * pair + 1].as_ptr());
            V::store_pairs(one, other, lines.add(first / 2 + pair));
        }
    }
    let sums = (&raw mut (*strip).sums).cast::<f32>();
    for at in 0..dim {
        V::zero().store(sums.add(at * LANES));
    }
    (*strip).tops = [UNSEEN; LANES];
    (*strip).weights = [0.0; LANES];
}

/// Those pages of a block that a strip sees.
struct Part<'a> {
    block: &'a Block,
    pages: Range<usize>,
    /// Tokens that all of the strip's queries see.
    whole: Range<usize>,
    /// Whether this strip asks for what is read a block later.
    asks: bool,
}

impl Part<'_> {
    /// The place in the block of its page `at`.
    #[inline(always)]
    fn place(&self, at: usize) -> usize {
        self.pages.start % BLOCK_PAGES + at
    }

    /// The position of a token of its page `at`.
    #[inline(always)]
    unsafe fn position<V: Lanes>(&self, at: usize, token: usize) -> V {
        V::splat((tokens_of(self.pages.start + at).start + token) as f32)
    }

    #[inline(always)]
    fn is_whole(&self, at: usize) -> bool {
        let tokens = tokens_of(self.pages.start + at);
        self.whole.start <= tokens.start && tokens.end <= self.whole.end
    }

    /// What is to be asked for as page `at` is met.
    #[inline(always)]
    fn next(&self, at: usize) -> Option<*const u8> {
        match self.asks {
            true => self.block.next[self.place(at)],
            false => None,
        }
    }
}

/// A strip and the pages of a block that it sees.
#[inline(always)]
unsafe fn meet<V: Lanes, U: Unit>(
    unit: &mut U,
    pages: &HeadPages,
    part: &Part<'_>,
    strip: &mut Strip,
    work: &mut Work,
) {
    score::<V, U>(unit, pages, part, strip, work.scores());
    // What makes a power of two of a score, as `follow` leaves it.
    let power = match pages.score_cap {
        Some(_) => LOG2_E,
        None => pages.scale * LOG2_E,
    };
    follow::<V>(pages, part, power, strip, work.scores());
    soften::<V>(pages, part, power, strip, work);
    weigh(unit, pages, part, strip, work.chances());
}

/// Products of queries and keys, page by page.
#[inline(always)]
unsafe fn score<V: Lanes, U: Unit>(
    unit: &mut U,
    pages: &HeadPages,
    part: &Part<'_>,
    strip: &Strip,
    scores: *mut Sums16,
) {
    let (dim, count) = (pages.dim(), part.pages.len());
    for first in (0..count).step_by(SLOTS) {
        let slots = SLOTS.min(count - first);
        unit.zero();
        for chunk in 0..dim / CHUNK {
            unit.take_queries(strip.queries[chunk].as_ptr());
            for slot in 0..slots {
                let keys = part.block.keys[part.place(first + slot)];
                unit.take_keys(keys.add(chunk * CHUNK), dim * size_of::<u16>());
                unit.score(slot);
                if let Some(next) = part.next(first + slot) {
                    let bytes = CHUNK * PAGE_TOKENS * size_of::<u16>();
                    ask_for::<V>(next.wrapping_add(chunk * bytes), bytes);
                }
            }
        }
        for slot in 0..slots {
            unit.store(slot, scores.add(first + slot));
        }
    }
}

/// Caps scores and hides those that a query may not see; then what its chances are relative to follows the
/// largest.
#[inline(always)]
unsafe fn follow<V: Lanes>(
    pages: &HeadPages,
    part: &Part<'_>,
    power: f32,
    strip: &mut Strip,
    scores: *mut Sums16,
) {
    let starts = V::load(strip.starts.as_ptr());
    let limits = V::load(strip.limits.as_ptr());
    let cap = pages.score_cap.map(|c| (V::splat(c), V::splat(2.0 / c)));
    // The largest of every fourth: none waits for the one before.
    let mut tops = [V::splat(UNSEEN); 4];
    for at in 0..part.pages.len() {
        let scores = (*scores.add(at)).0.as_mut_ptr().cast::<f32>();
        let is_whole = part.is_whole(at);
        if is_whole && cap.is_none() {
            for token in (0..PAGE_TOKENS).step_by(4) {
                for (at, top) in tops.iter_mut().enumerate() {
                    *top = top.max(V::load(scores.add((token + at) * LANES)));
                }
            }
            continue;
        }
        for token in 0..PAGE_TOKENS {
            let to = scores.add(token * LANES);
            let mut score = V::load(to);
            if let Some((cap, inverse)) = cap {
                score = capped(score.mul(V::splat(pages.scale)), cap, inverse);
            }
            if !is_whole {
                let position = part.position(at, token);
                score = V::between(position, starts, limits, score, V::splat(UNSEEN));
            }
            score.store(to);
            tops[0] = tops[0].max(score);
        }
    }
    let most = tops[0].max(tops[1]).max(tops[2].max(tops[3]));
    let old_top = V::load(strip.tops.as_ptr());
    let grown = most.sub(old_top).mul(V::splat(power));
    let far = (V::splat(FAR), V::splat(f32::INFINITY));
    let top = V::between(grown, far.0, far.1, most, old_top);
    if top.sub(old_top).largest() > 0.0 {
        // Exactly one where nothing changes.
        let shrink = old_top.sub(top).mul(V::splat(power)).exp2_near();
        let weight = V::load(strip.weights.as_ptr()).mul(shrink);
        weight.store(strip.weights.as_mut_ptr());
        let sums = (&raw mut strip.sums).cast::<f32>();
        for at in 0..pages.dim() {
            let sum = sums.add(at * LANES);
            V::load(sum).mul(shrink).store(sum);
        }
        top.store(strip.tops.as_mut_ptr());
    }
}

/// Chances of scores, in pairs of tokens, and their sums.
#[inline(always)]
unsafe fn soften<V: Lanes>(
    pages: &HeadPages,
    part: &Part<'_>,
    power: f32,
    strip: &mut Strip,
    work: &mut Work,
) {
    let starts = V::load(strip.starts.as_ptr());
    let limits = V::load(strip.limits.as_ptr());
    let power = V::splat(power);
    let less = V::zero().sub(V::load(strip.tops.as_ptr()).mul(power));
    let mut weight = V::load(strip.weights.as_ptr());
    for at in 0..part.pages.len() {
        let scores = work.scores().add(at).cast::<f32>();
        let chances = work.chances().add(at * PAGE_LINES);
        let (is_whole, next) = (part.is_whole(at), part.next(at));
        for pair in 0..PAGE_LINES {
            let mut both = [V::zero(); 2];
            for (side, chance) in both.iter_mut().enumerate() {
                let token = 2 * pair + side;
                let score = V::load(scores.add(token * LANES));
                *chance = score.fma(power, less).exp2_near();
                if !is_whole {
                    let position = part.position(at, token);
                    *chance = V::between(position, starts, limits, *chance, V::zero());
                }
                // As it will weigh: then all weights are one together.
                *chance = chance.to_bf16();
            }
            weight = weight.add(both[0].add(both[1]));
            V::store_rounded_pairs(both[0], both[1], chances.add(pair));
            if let Some(next) = next {
                let bytes = pages.dim() * PAGE_TOKENS * size_of::<u16>() / PAGE_LINES;
                ask_for::<V>(pages.values_of(next).wrapping_add(pair * bytes), bytes);
            }
        }
    }
    weight.store(strip.weights.as_mut_ptr());
}

/// Adds products of values and chances.
#[inline(always)]
unsafe fn weigh<U: Unit>(
    unit: &mut U,
    pages: &HeadPages,
    part: &Part<'_>,
    strip: &mut Strip,
    chances: *const Line,
) {
    let tiles = pages.dim() / LANES;
    for tile in (0..tiles).step_by(SLOTS) {
        let slots = SLOTS.min(tiles - tile);
        for slot in 0..slots {
            unit.load(slot, &strip.sums[tile + slot]);
        }
        for at in 0..part.pages.len() {
            unit.take_chances(chances.add(at * PAGE_LINES));
            let values = part.block.values[part.place(at)].add(tile * LANES * PAGE_TOKENS);
            for slot in 0..slots {
                unit.take_values(values.add(slot * LANES * PAGE_TOKENS));
                unit.weigh(slot);
            }
        }
        for slot in 0..slots {
            unit.store(slot, &mut strip.sums[tile + slot]);
        }
    }
}

/// A block ahead, some lines at a time in between other work: more at once than a core can wait for would hold
/// it up, and random pages come fastest where some are always asked for.
#[inline(always)]
unsafe fn ask_for<V: Lanes>(from: *const u8, bytes: usize) {
    for at in (0..bytes).step_by(64) {
        V::prefetch(from.wrapping_add(at));
    }
}

/// A strip's sums over its weights, to where they belong.
#[inline(always)]
unsafe fn finish<V: Lanes>(
    pages: &HeadPages,
    queries: &[Query],
    strip: &Strip,
    turned: *mut Sums16,
) {
    let inverse = V::splat(1.0).div(V::load(strip.weights.as_ptr()));
    let (columns, rows) = (turned, turned.add(1));
    for (tile, sums) in strip.sums[..pages.dim() / LANES].iter().enumerate() {
        for (sum, column) in sums.0.iter().zip(&mut (*columns).0) {
            V::load(sum.as_ptr())
                .mul(inverse)
                .store(column.as_mut_ptr());
        }
        V::transpose(columns, rows);
        for (query, row) in queries.iter().zip(&(*rows).0) {
            V::load(row.as_ptr()).store(query.to.add(tile * LANES));
        }
    }
}

#[cfg(test)]
#[path = "attention_tiles_tests.rs"]
mod tests;
