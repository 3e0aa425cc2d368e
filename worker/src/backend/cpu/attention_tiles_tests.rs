//! Attention by tiles, by a unit that is written down: so that it is tested where there is none.

use super::*;
use crate::backend::cpu::Cpu;
use crate::backend::cpu::attention::{CpuKv, Form};
use crate::backend::cpu::lanes::Portable;
use crate::backend::cpu::tests::{assert_near, to_bf16, uniform};
use crate::backend::{Backend, Isa, KvShape, Step};
use crate::model::SequenceSlice;
use half::bf16;
use trireme_shared::model::random::SplitMix;
use trireme_shared::model::{ActivationFormat, KvFormat, Rope, RopeScaling, RopeStyle};

/// What the instructions do in attention (Intel SDM volume 2, `TDPBF16PS`), in plain loops.
#[derive(Default)]
struct Written {
    /// Rows of pairs, as all of these.
    keys: Vec<Vec<u16>>,
    values: Vec<Vec<u16>>,
    queries: Vec<Line>,
    chances: Vec<Line>,
    sums: [[[f32; 16]; 16]; SLOTS],
}

impl Written {
    fn add(&mut self, slot: usize, rows: &[Vec<u16>], lines: &[Line]) {
        let float = |bits: u16| bf16::from_bits(bits).to_f32();
        for (sums, row) in self.sums[slot].iter_mut().zip(rows) {
            for (query, sum) in sums.iter_mut().enumerate() {
                let mut chains = [0f32; 2];
                for (pair, line) in row.chunks(2).zip(lines) {
                    for (side, chain) in chains.iter_mut().enumerate() {
                        let other = float(line.0[2 * query + side]);
                        *chain = float(pair[side]).mul_add(other, *chain);
                    }
                }
                *sum += chains[0] + chains[1];
            }
        }
    }
}

impl Unit for Written {
    unsafe fn zero(&mut self) {
        self.sums = Default::default();
    }
    unsafe fn take_queries(&mut self, from: *const Line) {
        self.queries = unsafe { std::slice::from_raw_parts(from, 16) }.to_vec();
    }
    unsafe fn take_keys(&mut self, from: *const u16, pitch: usize) {
        let row = |at: usize| unsafe {
            std::slice::from_raw_parts(from.cast::<u8>().add(at * pitch).cast(), 32).to_vec()
        };
        self.keys = (0..16).map(row).collect();
    }
    unsafe fn score(&mut self, slot: usize) {
        let (keys, queries) = (self.keys.clone(), self.queries.clone());
        self.add(slot, &keys, &queries);
    }
    unsafe fn take_chances(&mut self, from: *const Line) {
        self.chances = unsafe { std::slice::from_raw_parts(from, 8) }.to_vec();
    }
    unsafe fn take_values(&mut self, from: *const u16) {
        let all = unsafe { std::slice::from_raw_parts(from, 256) };
        self.values = all.chunks(16).map(<[u16]>::to_vec).collect();
    }
    unsafe fn weigh(&mut self, slot: usize) {
        let (values, chances) = (self.values.clone(), self.chances.clone());
        self.add(slot, &values, &chances);
    }
    unsafe fn load(&mut self, slot: usize, from: *const Sums16) {
        self.sums[slot] = unsafe { (*from).0 };
    }
    unsafe fn store(&mut self, slot: usize, to: *mut Sums16) {
        unsafe { (*to).0 = self.sums[slot] };
    }
}

/// Blocks are several, values large enough that what chances are relative to moves and stays, and dimensions more than the
/// unit holds sums for.
#[test]
fn attention_by_tiles_is_attention() {
    let mut random = SplitMix(17);
    let (tokens, heads, group) = (150, 1, 3);
    let mut cpu = Cpu::new(Isa::Portable, 1, ActivationFormat::Int16).unwrap();
    let pages: Vec<u32> = (0..10).rev().collect();
    let sequences = [SequenceSlice {
        first: 0,
        len: tokens as u32,
        context: 0,
        pages,
    }];
    let (ones, zeroes) = (vec![1.0; tokens], vec![0.0; tokens]);
    for (dim, window, score_cap) in [
        (64, None, None),
        (96, Some(21), None),
        (32, None, Some(3.0)),
    ] {
        let shape = KvShape {
            layers: 1,
            pages: 10,
            heads,
            head_dim: dim,
            format: KvFormat::F16,
        };
        let (mut plain, mut kv) = (cpu.kv(shape).unwrap(), CpuKv::new(shape, true).unwrap());
        assert_eq!((plain.form(), kv.form()), (Form::Halves, Form::Tiles));
        let step = Step {
            sequences: &sequences,
            cosines: &ones,
            sines: &zeroes,
            rope: Rope {
                theta: 1.0,
                dims: 2,
                style: RopeStyle::Halves,
                scaling: RopeScaling::None,
            },
            group,
            scale: 0.7,
            score_cap,
            window,
        };
        let width = heads * group * dim;
        let (mut q, mut k, mut v, mut want) = Default::default();
        // Eight bits each, so that both caches hold the same.
        let mut rounded = |count: usize| -> Vec<f32> {
            let values = uniform(&mut random, count);
            values.into_iter().map(to_bf16).collect()
        };
        cpu.upload(&rounded(tokens * width), width, &mut q);
        cpu.upload(&rounded(tokens * heads * dim), heads * dim, &mut k);
        cpu.upload(&rounded(tokens * heads * dim), heads * dim, &mut v);
        cpu.rope_append(&step, None, &mut q, &k, &v, &mut plain, 0);
        cpu.rope_append(&step, None, &mut q, &k, &v, &mut kv, 0);
        cpu.attention(&step, &q, &plain, 0, &mut want);
        let want: Vec<f64> = want.data.iter().map(|v| f64::from(*v)).collect();
        let run = |size: usize| {
            let mut got = vec![0f32; tokens * width];
            for head in 0..heads {
                let pages = HeadPages::new(&kv, &step, 0, head, &sequences[0].pages);
                let queries: Vec<Query> = (0..tokens * group)
                    .map(|query| {
                        let at = query / group * width + (head * group + query % group) * dim;
                        let limit = query / group + 1;
                        Query {
                            from: q.data[at..at + dim].as_ptr(),
                            to: got[at..at + dim].as_mut_ptr(),
                            start: limit.saturating_sub(window.unwrap_or(usize::MAX)),
                            limit,
                        }
                    })
                    .collect();
                let mut room = Room::boxed();
                for queries in queries.chunks(size) {
                    let unit = &mut Written::default();
                    // SAFETY: the cache holds all tokens, and queries and outputs are there.
                    unsafe {
                        attend::<Portable, _>(unit, &pages, queries, None, &mut room);
                    }
                }
            }
            got
        };
        let got = run(TASK_QUERIES_MAX);
        assert_near(&got, &want, 5e-3, &format!("{dim} {window:?}"));
        // To the last bit, whatever stands beside a query.
        assert!(run(5) == got && run(23) == got, "{dim} {window:?}");
    }
}
