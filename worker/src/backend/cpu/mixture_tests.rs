//! Mixtures against plain f64 arithmetic, on each instruction set this machine has.

use super::super::tests::{
    assert_near, backends, backends_with, file_bytes, product, quantised, uniform, view,
};
use super::*;
use crate::backend::Backend;
use trireme_shared::model::random::SplitMix;
use trireme_shared::model::{ActivationFormat, DType};

const EPS: f32 = 1e-5;
const HIDDEN: usize = 64;

/// A mixture's weights as files have them.
struct Files {
    mixture: Mixture,
    dtype: DType,
    ffn: usize,
    router: Vec<f32>,
    norm: Vec<f32>,
    /// Gate, up and down.
    experts: Vec<[Vec<u8>; 3]>,
}

impl Files {
    fn new(random: &mut SplitMix, dtype: DType, ffn: usize, mixture: Mixture) -> Self {
        let count = mixture.experts as usize;
        let mut matrix = || file_bytes(random, dtype, ffn * HIDDEN);
        let experts = (0..count).map(|_| [matrix(), matrix(), matrix()]);
        let experts = experts.collect();
        Self {
            mixture,
            dtype,
            ffn,
            router: uniform(random, count * HIDDEN),
            norm: uniform(random, HIDDEN),
            experts,
        }
    }

    fn views(&self, expert: usize) -> [WeightView<'_>; 3] {
        let [gate, up, down] = &self.experts[expert];
        [
            view(self.dtype, self.ffn, HIDDEN, gate),
            view(self.dtype, self.ffn, HIDDEN, up),
            view(self.dtype, HIDDEN, self.ffn, down),
        ]
    }

    fn load(&self, cpu: &mut Cpu, held: Span) -> CpuMixture {
        let experts = held.range().map(|expert| {
            let [gate, up, down] = self.views(expert);
            (cpu.gated(&gate, &up).unwrap(), cpu.matrix(&down).unwrap())
        });
        let experts = experts.collect();
        let bytes: Vec<u8> = self.router.iter().flat_map(|v| v.to_le_bytes()).collect();
        let router = view(DType::F32, self.mixture.experts as usize, HIDDEN, &bytes);
        cpu.mixture(self.mixture, &router, &self.norm, held, experts)
            .unwrap()
    }

    /// Each expert's weight, none where it is not used.
    fn weights(&self, normed: &[f64]) -> Vec<Option<f64>> {
        let rows = self.router.chunks(HIDDEN);
        let dot = |row: &[f32]| -> f64 {
            let both = normed.iter().zip(row);
            both.map(|(x, r)| x * f64::from(*r)).sum()
        };
        let powers: Vec<f64> = rows.map(|row| dot(row).exp()).collect();
        let mut order: Vec<usize> = (0..powers.len()).collect();
        order.sort_by(|a, b| powers[*b].total_cmp(&powers[*a]));
        let used = &order[..self.mixture.used as usize];
        let sum: f64 = match self.mixture.normalised {
            true => used.iter().map(|&e| powers[e]).sum(),
            false => powers.iter().sum(),
        };
        let weight = |e: usize| used.contains(&e).then(|| powers[e] / sum);
        (0..powers.len()).map(weight).collect()
    }

    /// What the experts `held` add up to.
    fn answer(&self, x: &[f32], held: Span) -> Vec<f64> {
        let sees = |values: &[f32]| match self.dtype {
            DType::F32 => values.to_vec(),
            _ => quantised(values),
        };
        let mut out = Vec::new();
        for row in x.chunks(HIDDEN) {
            let square: f64 = row.iter().map(|v| f64::from(*v).powi(2)).sum();
            let factor = 1.0 / (square / HIDDEN as f64 + f64::from(EPS)).sqrt();
            let both = row.iter().zip(&self.norm);
            let normed: Vec<f64> = both
                .map(|(x, n)| f64::from(*x) * factor * f64::from(*n))
                .collect();
            let input: Vec<f32> = normed.iter().map(|v| *v as f32).collect();
            let mut sum = vec![0.0; HIDDEN];
            for (expert, weight) in self.weights(&normed).iter().enumerate() {
                let Some(weight) = weight.filter(|_| held.range().contains(&expert)) else {
                    continue;
                };
                let [gate, up, down] = self.views(expert);
                let gates = product(&gate, &sees(&input));
                let ups = product(&up, &sees(&input));
                let both = gates.iter().zip(ups);
                let gated: Vec<f32> = both
                    .map(|(g, u)| (g / (1.0 + (-g).exp()) * u) as f32)
                    .collect();
                let terms = product(&down, &sees(&gated));
                sum.iter_mut()
                    .zip(terms)
                    .for_each(|(s, t)| *s += weight * t);
            }
            out.extend(sum);
        }
        out
    }
}

fn run(cpu: &mut Cpu, weights: &CpuMixture, norm: &Vec<f32>, values: &[f32]) -> Vec<f64> {
    let (mut x, mut normed, mut out) = Default::default();
    cpu.upload(values, HIDDEN, &mut x);
    cpu.rms_norm(&x, norm, EPS, &mut normed);
    let input = MixtureInput {
        x: &x,
        eps: EPS,
        normed: &mut normed,
    };
    cpu.mixture_ffn(input, weights, Activation::Silu, 128, &mut out);
    out.data
}

fn mixture(experts: u32, used: u32, normalised: bool) -> Mixture {
    Mixture {
        experts,
        used,
        normalised,
    }
}

#[test]
fn experts_add_up_by_the_weights_of_the_router() {
    let mut random = SplitMix(31);
    for mut cpu in backends() {
        // Wider than a segment, and narrower than a group.
        for (dtype, ffn) in [(DType::F32, 150), (DType::Q4_1, 160), (DType::Q8_0, 32)] {
            for (mixture, held) in [
                (mixture(1, 1, true), 0..1),
                (mixture(3, 3, true), 0..3),
                (mixture(3, 3, false), 1..3),
                (mixture(19, 2, true), 0..19),
                (mixture(19, 4, false), 3..18),
            ] {
                let files = Files::new(&mut random, dtype, ffn, mixture);
                let held = Span::new(held.start, held.end);
                let weights = files.load(&mut cpu, held);
                // The last more than a chunk, and with odd experts of many chunks.
                for rows in [1, 2, 17, 150] {
                    let values = uniform(&mut random, rows * HIDDEN);
                    let got = run(&mut cpu, &weights, &files.norm, &values);
                    let got: Vec<f32> = got.iter().map(|v| *v as f32).collect();
                    let want = files.answer(&values, held);
                    // A gated activation next to a rounding edge may be quantised to the next step.
                    let tolerance = if dtype == DType::F32 { 1e-5 } else { 1e-4 };
                    let what = format!("{:?} {dtype:?} {mixture:?} {held:?} {rows}", cpu.isa);
                    assert_near(&got, &want, tolerance, &what);
                }
            }
        }
    }
}

#[test]
fn shares_of_the_experts_add_up_to_the_same_and_a_row_is_alone_or_not() {
    let mut random = SplitMix(32);
    let all = [ActivationFormat::Int16, ActivationFormat::Bf16];
    for mut cpu in all.into_iter().flat_map(backends_with) {
        let files = Files::new(&mut random, DType::Q4_1, 160, mixture(7, 3, true));
        let values = uniform(&mut random, 150 * HIDDEN);
        let whole = files.load(&mut cpu, Span::new(0, 7));
        let want = run(&mut cpu, &whole, &files.norm, &values);
        for (row, want) in values.chunks(HIDDEN).zip(want.chunks(HIDDEN)) {
            assert_eq!(run(&mut cpu, &whole, &files.norm, row), want);
        }
        let mut sum = vec![0.0; want.len()];
        for (start, end) in [(0, 3), (3, 4), (4, 7)] {
            let part = files.load(&mut cpu, Span::new(start, end));
            let part = run(&mut cpu, &part, &files.norm, &values);
            sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
        }
        for (sum, want) in sum.iter().zip(&want) {
            assert_eq!(*sum as f32, *want as f32);
        }
    }
}

/// Rows in bf16 stand where strips begin; what they add up to depends neither on that nor on who adds it up.
#[test]
fn experts_of_bf16_add_up_to_the_same_on_every_instruction_set() {
    let mut random = SplitMix(36);
    for dtype in [DType::Q4_1, DType::Q8_0, DType::F32] {
        let files = Files::new(&mut random, dtype, 256, mixture(5, 2, true));
        let values = uniform(&mut random, 90 * HIDDEN);
        let mut sums = backends_with(ActivationFormat::Bf16).map(|mut cpu| {
            let weights = files.load(&mut cpu, Span::new(0, 5));
            (cpu.isa, run(&mut cpu, &weights, &files.norm, &values))
        });
        let (_, first) = sums.next().unwrap();
        let first: Vec<f32> = first.iter().map(|v| *v as f32).collect();
        let want = files.answer(&values, Span::new(0, 5));
        // Of eight bits twice, and again.
        assert_near(&first, &want, 2e-2, &format!("{dtype:?}"));
        // Exponentials are not the same everywhere.
        for (isa, sums) in sums {
            let sums: Vec<f32> = sums.iter().map(|v| *v as f32).collect();
            let want: Vec<f64> = first.iter().map(|v| f64::from(*v)).collect();
            assert_near(&sums, &want, 5e-3, &format!("{isa:?} {dtype:?}"));
        }
    }
}

/// Or ranks that differ in it would disagree about who computes what.
#[test]
fn every_instruction_set_finds_the_same_routes() {
    let mut random = SplitMix(33);
    let mut files = Files::new(&mut random, DType::F32, 16, mixture(40, 5, true));
    // Experts that are chosen by less than f32 can tell.
    for expert in 1..40 {
        for column in 0..HIDDEN {
            let first = files.router[column];
            files.router[expert * HIDDEN + column] = first + 1e-7 * random.uniform();
        }
    }
    let values = uniform(&mut random, 60 * HIDDEN);
    let mut all = backends().map(|mut cpu| {
        let weights = files.load(&mut cpu, Span::new(0, 40));
        run(&mut cpu, &weights, &files.norm, &values);
        let routes = cpu.routing.routes.iter();
        let routes = routes.map(|r| (r.expert, r.row, r.weight));
        routes.collect::<Vec<_>>()
    });
    let first = all.next().unwrap();
    assert_eq!(first.len(), 60 * 5);
    all.for_each(|other| assert_eq!(other, first));
}

#[test]
fn equal_experts_are_taken_in_order_and_experts_nobody_chose_add_nothing() {
    let mut random = SplitMix(34);
    for mut cpu in backends() {
        let mut files = Files::new(&mut random, DType::Q4_1, 32, mixture(6, 2, true));
        files.norm = vec![1.0; HIDDEN];
        // Of positive rows: expert 4 above all, then 2, 3 and 5 alike.
        for (row, value) in files
            .router
            .chunks_mut(HIDDEN)
            .zip([-0.5, -0.5, 0.1, 0.1, 0.2, 0.1])
        {
            row.fill(value);
        }
        let values: Vec<f32> = uniform(&mut random, 9 * HIDDEN);
        let values: Vec<f32> = values.iter().map(|v| v.abs()).collect();
        let all = files.load(&mut cpu, Span::new(0, 6));
        run(&mut cpu, &all, &files.norm, &values);
        let by_expert = |expert: usize| {
            let routes = cpu.routing.routes.iter();
            routes.filter(move |r| r.expert == expert).count()
        };
        assert_eq!([0, 1, 2, 3, 4, 5].map(by_expert), [0, 0, 9, 0, 9, 0]);
        for (start, end) in [(0, 2), (3, 4)] {
            let none = files.load(&mut cpu, Span::new(start, end));
            // What a step before left behind does not count.
            run(&mut cpu, &all, &files.norm, &values);
            let got = run(&mut cpu, &none, &files.norm, &values);
            assert!(got.iter().all(|v| *v == 0.0));
        }
    }
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let mut random = SplitMix(35);
    let mut cpu = Cpu::new(crate::backend::Isa::Portable, 1, Default::default()).unwrap();
    let files = Files::new(&mut random, DType::F32, 32, mixture(2, 1, true));
    let router = vec![0; 2 * HIDDEN * 4];
    let mut refused = |mixture: Mixture, held: Span, ffns: &[usize]| {
        let experts = ffns.iter().map(|&ffn| {
            let bytes = file_bytes(&mut random, DType::F32, ffn * HIDDEN);
            let [up, down] = [(ffn, HIDDEN), (HIDDEN, ffn)];
            let up = view(DType::F32, up.0, up.1, &bytes);
            let down = view(DType::F32, down.0, down.1, &bytes);
            (cpu.gated(&up, &up).unwrap(), cpu.matrix(&down).unwrap())
        });
        let experts = experts.collect();
        let router = view(DType::F32, 2, HIDDEN, &router);
        let made = cpu.mixture(mixture, &router, &files.norm, held, experts);
        made.err().map(|e| e.to_string())
    };
    let (two, both) = (mixture(2, 1, true), Span::new(0, 2));
    assert_eq!(refused(two, both, &[32, 32]), None);
    for (mixture, held, ffns) in [
        (two, both, &[32, 48][..]),
        (two, both, &[32]),
        (two, Span::new(0, 0), &[]),
        (mixture(3, 1, true), both, &[32, 32]),
        (mixture(2, 3, true), both, &[32, 32]),
        (mixture(2, 0, true), both, &[32, 32]),
    ] {
        assert!(
            refused(mixture, held, ffns).is_some(),
            "{mixture:?} {ffns:?}"
        );
    }
}
