//! Chooses and checks how the workers share the model: tensor parallel x pipeline parallel x
//! replicas. Pure.

use crate::failure::Failure;
use crate::term;
use trireme_shared::limits;

/// A complete split. `tp * pp * replicas` is the number of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    pub tp: u16,
    pub pp: u16,
    pub replicas: u16,
}

impl Split {
    pub fn workers(self) -> u32 {
        u32::from(self.tp) * u32::from(self.pp) * u32::from(self.replicas)
    }
}

/// What the user asked for; `None` is left to us.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    pub workers: Option<u16>,
    pub tp: Option<u16>,
    pub pp: Option<u16>,
    pub replicas: Option<u16>,
}

/// How far a model can be split.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Each rank of a stage holds at least one key/value head (and some FFN columns).
    pub tp_max: u32,
    /// Each stage holds at least one layer.
    pub pp_max: u32,
}

/// Before the model is known: what no model could exceed.
pub const ANY_MODEL: Bounds = Bounds {
    tp_max: limits::TENSOR_PARALLEL_MAX as u32,
    pp_max: limits::PIPELINE_PARALLEL_MAX as u32,
};

const WORKERS_DEFAULT: u16 = 2;

impl Wanted {
    /// The number of workers: as asked, or what the split needs, or two.
    pub fn worker_count(&self) -> u32 {
        match self.workers {
            Some(workers) => u32::from(workers),
            None if self.tp.or(self.pp).or(self.replicas).is_none() => u32::from(WORKERS_DEFAULT),
            None => {
                let product = [self.tp, self.pp, self.replicas]
                    .into_iter()
                    .flatten()
                    .fold(1u32, |n, factor| n.saturating_mul(u32::from(factor)));
                // `--replicas 2` alone, on the default: two whole copies.
                product.max(1)
            }
        }
    }

    /// Completes the split: as few replicas as possible, then as much tensor parallelism as the
    /// model's key/value heads allow, then stages.
    pub fn complete(&self, bounds: Bounds) -> Result<Split, Failure> {
        let workers = self.worker_count();
        let possible = splits(workers, bounds);
        let fits = |s: &&Split| {
            self.tp.is_none_or(|tp| tp == s.tp)
                && self.pp.is_none_or(|pp| pp == s.pp)
                && self.replicas.is_none_or(|r| r == s.replicas)
        };
        if let Some(split) = possible.iter().find(fits) {
            return Ok(*split);
        }
        let asked: Vec<String> = [
            ("tp", self.tp),
            ("pp", self.pp),
            ("replicas", self.replicas),
        ]
        .into_iter()
        .filter_map(|(name, value)| value.map(|value| format!("{name} {value}")))
        .collect();
        let what = match (self.tp, self.pp, self.replicas) {
            (Some(tp), Some(pp), Some(r)) if product(tp, pp, r) != workers => format!(
                "tp {tp} x pp {pp} x replicas {r} = {} ranks, but there are {workers} workers: \
                 tp x pp x replicas must equal the workers",
                product(tp, pp, r)
            ),
            _ if asked.is_empty() => {
                format!("{workers} workers cannot share this model")
            }
            (tp, pp, r) if !workers.is_multiple_of(ranks(tp, pp, r)) => format!(
                "{} = {} ranks do not divide {workers} workers: tp x pp x replicas must equal the \
                 workers",
                asked.join(" x "),
                ranks(tp, pp, r)
            ),
            _ if bounds.tp_max == ANY_MODEL.tp_max && bounds.pp_max == ANY_MODEL.pp_max => format!(
                "{} cannot be completed to {workers} workers: tp x pp x replicas must equal the \
                 workers",
                asked.join(", ")
            ),
            _ => format!(
                "{} cannot be completed to {workers} workers: tp x pp x replicas must equal the \
                 workers, with tp at most {} (its key/value heads) and pp at most {} (its layers)",
                asked.join(", "),
                bounds.tp_max,
                bounds.pp_max
            ),
        };
        Err(Failure::usage(what, advice(workers, &possible)))
    }
}

/// Ranks of what was asked for, what was left out counted as one; at least 1.
fn ranks(tp: Option<u16>, pp: Option<u16>, replicas: Option<u16>) -> u32 {
    let of = |degree: Option<u16>| degree.unwrap_or(1).max(1);
    product(of(tp), of(pp), of(replicas))
}

fn product(tp: u16, pp: u16, replicas: u16) -> u32 {
    Split { tp, pp, replicas }.workers()
}

/// Every split over `workers`, best first.
fn splits(workers: u32, bounds: Bounds) -> Vec<Split> {
    let divisors = |n: u32| (1..=n).filter(move |d| n.is_multiple_of(*d));
    let mut found = Vec::new();
    for replicas in divisors(workers) {
        let ranks = workers / replicas;
        for tp in divisors(ranks).collect::<Vec<_>>().into_iter().rev() {
            let pp = ranks / tp;
            if tp > bounds.tp_max.min(limits::TENSOR_PARALLEL_MAX as u32)
                || pp > bounds.pp_max.min(limits::PIPELINE_PARALLEL_MAX as u32)
            {
                continue;
            }
            if let (Ok(tp), Ok(pp), Ok(replicas)) = (
                u16::try_from(tp),
                u16::try_from(pp),
                u16::try_from(replicas),
            ) {
                found.push(Split { tp, pp, replicas });
            }
        }
    }
    found
}

fn advice(workers: u32, possible: &[Split]) -> String {
    /// More lines than this are not read.
    const SHOWN: usize = 12;
    if possible.is_empty() {
        return format!("use fewer than {workers} workers");
    }
    let rows = possible
        .iter()
        .take(SHOWN)
        .map(|s| vec![s.tp.to_string(), s.pp.to_string(), s.replicas.to_string()])
        .collect();
    format!(
        "choose one of the splits of {workers} workers:\n{}",
        term::table(&[">--tp", ">--pp", ">--replicas"], rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SmolLM2-135M.
    const SMOLLM2: Bounds = Bounds {
        tp_max: 3,
        pp_max: 30,
    };

    fn wanted(workers: u16, tp: u16, pp: u16, replicas: u16) -> Wanted {
        let some = |n: u16| (n > 0).then_some(n);
        Wanted {
            workers: some(workers),
            tp: some(tp),
            pp: some(pp),
            replicas: some(replicas),
        }
    }

    #[test]
    fn what_is_left_out_is_completed_sensibly() {
        for (asked, (tp, pp, replicas)) in [
            ((0, 0, 0, 0), (2, 1, 1)),
            ((1, 0, 0, 0), (1, 1, 1)),
            ((3, 0, 0, 0), (3, 1, 1)),
            ((4, 0, 0, 0), (2, 2, 1)),
            ((6, 0, 0, 0), (3, 2, 1)),
            ((5, 0, 0, 0), (1, 5, 1)),
            ((4, 0, 4, 0), (1, 4, 1)),
            ((4, 2, 0, 0), (2, 2, 1)),
            ((4, 0, 0, 2), (2, 1, 2)),
            ((0, 2, 2, 0), (2, 2, 1)),
            ((0, 0, 0, 2), (1, 1, 2)),
            ((31, 0, 0, 0), (1, 1, 31)),
        ] {
            let (w, t, p, r) = asked;
            let split = wanted(w, t, p, r).complete(SMOLLM2).unwrap();
            assert_eq!(split, Split { tp, pp, replicas }, "{asked:?}");
        }
    }

    #[test]
    fn an_impossible_split_says_so_and_shows_the_possible_ones() {
        let error = wanted(4, 2, 1, 1).complete(SMOLLM2).unwrap_err();
        let text = format!("{error:?}");
        assert!(text.contains("2 ranks, but there are 4 workers"), "{text}");
        assert!(
            text.contains("--tp") && text.contains("2     2           1"),
            "{text}"
        );

        let error = wanted(4, 4, 0, 0)
            .complete(SMOLLM2)
            .unwrap_err()
            .to_string();
        assert!(error.contains("tp at most 3"), "{error}");
        assert!(wanted(4, 3, 0, 0).complete(SMOLLM2).is_err());
    }
}
