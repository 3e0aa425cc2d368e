//! A whole model in this process, split over threads as ranks would have it.

#![allow(dead_code, reason = "each test uses its part")]

use std::sync::{Arc, Barrier, Mutex};
use trireme_shared::model::{Manifest, Precision, RankShare};
use trireme_worker::backend::Isa;
use trireme_worker::model::{Batch, Forward, RankModel, Runtime};
use trireme_worker::parallel::{Abort, Collective, LinkError};

/// KV pages of every rank.
pub const PAGES: usize = 40;

/// Threads of this process that add up in rank order.
#[derive(Clone)]
struct Threads {
    rank: usize,
    size: usize,
    barrier: Arc<Barrier>,
    slots: Arc<Mutex<Vec<Vec<f64>>>>,
}

impl Threads {
    fn group(size: usize) -> Vec<Self> {
        let barrier = Arc::new(Barrier::new(size));
        let slots = Arc::new(Mutex::new(vec![Vec::new(); size]));
        (0..size)
            .map(|rank| Self {
                rank,
                size,
                barrier: barrier.clone(),
                slots: slots.clone(),
            })
            .collect()
    }
}

impl Collective for Threads {
    fn rank(&self) -> usize {
        self.rank
    }
    fn size(&self) -> usize {
        self.size
    }
    fn all_reduce(&mut self, values: &mut [f64]) -> Result<(), LinkError> {
        self.slots.lock().unwrap()[self.rank] = values.to_vec();
        self.barrier.wait();
        values.fill(0.0);
        for theirs in self.slots.lock().unwrap().iter() {
            assert_eq!(theirs.len(), values.len());
            values.iter_mut().zip(theirs).for_each(|(v, t)| *v += t);
        }
        self.barrier.wait();
        Ok(())
    }
    fn gather(&mut self, _: &[f32], _: &[usize], _: &mut Vec<f32>) -> Result<(), LinkError> {
        unreachable!("the model does not gather")
    }
}

/// A whole model in stages and ranks.
pub struct Split {
    pub stages: Vec<Vec<RankModel>>,
}

impl Split {
    pub fn load(manifest: &Manifest, weights: &[Vec<u64>], threads: usize) -> Self {
        Self::load_on(manifest, weights, threads, Isa::detect())
    }

    pub fn load_on(manifest: &Manifest, weights: &[Vec<u64>], threads: usize, isa: Isa) -> Self {
        Self::load_with(manifest, weights, threads, isa, Precision::default())
    }

    pub fn load_with(
        manifest: &Manifest,
        weights: &[Vec<u64>],
        threads: usize,
        isa: Isa,
        precision: Precision,
    ) -> Self {
        let runtime = Runtime {
            threads,
            isa,
            kv_pages: PAGES,
            activations: precision.activations,
            kv: precision.kv,
        };
        let shares = manifest.shares(weights).unwrap();
        let load = |share: &RankShare| {
            RankModel::load(manifest, share, &runtime, &|_, _| {}, &Abort::default()).unwrap()
        };
        let stages = shares
            .chunks(weights[0].len())
            .map(|stage| stage.iter().map(load).collect())
            .collect();
        Self { stages }
    }

    /// `outputs x vocab`, from all ranks' spans.
    pub fn logits(&mut self, batch: &Batch) -> Vec<Vec<f32>> {
        let mut input: Option<Vec<f32>> = None;
        let last = self.stages.len() - 1;
        let mut rows = vec![Vec::new(); batch.outputs.len()];
        for (number, ranks) in self.stages.iter_mut().enumerate() {
            let links = Threads::group(ranks.len());
            let input_here = input.take();
            let results: Vec<Vec<f32>> = std::thread::scope(|scope| {
                let running: Vec<_> = ranks
                    .iter_mut()
                    .zip(links)
                    .map(|(model, mut link)| {
                        let input = input_here.as_deref();
                        scope.spawn(
                            move || match model.forward(batch, input, &mut link).unwrap() {
                                Forward::Hidden(values) => {
                                    assert!(number < last);
                                    values.to_vec()
                                }
                                Forward::Logits(values) => {
                                    assert_eq!(number, last);
                                    values.to_vec()
                                }
                            },
                        )
                    })
                    .collect();
                running.into_iter().map(|r| r.join().unwrap()).collect()
            });
            if number < last {
                assert!(results.iter().all(|r| *r == results[0]), "ranks disagree");
                input = results.into_iter().next();
            } else {
                for (model, logits) in ranks.iter().zip(results) {
                    let width = model.share().vocab.len() as usize;
                    for (row, part) in rows.iter_mut().zip(logits.chunks(width)) {
                        row.extend_from_slice(part);
                    }
                }
            }
        }
        rows
    }
}
