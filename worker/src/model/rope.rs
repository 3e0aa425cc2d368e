//! Angles of rotary position embeddings (Su et al. 2021, "RoFormer"), and how models that were
//! taught a longer context scale them.

use std::f64::consts::PI;
use trireme_shared::model::{Rope, RopeScaling};

/// Cosines and sines of a step's rows, shared by all layers of a kind. Row-major, `dims / 2` a row.
#[derive(Default)]
pub(super) struct RopeTable {
    /// Radians per position of each pair.
    frequencies: Vec<f64>,
    /// What cosines and sines are multiplied by, and so both queries and keys.
    factor: f64,
    pub(super) cosines: Vec<f32>,
    pub(super) sines: Vec<f32>,
}

impl RopeTable {
    /// `divisors` are of each pair's frequency, from the model's file, if it has them.
    pub(super) fn new(rope: Rope, divisors: Option<&[f32]>) -> Self {
        let dims = f64::from(rope.dims);
        let frequency = |pair: u32| f64::from(rope.theta).powf(-2.0 * f64::from(pair) / dims);
        let mut frequencies: Vec<f64> = (0..rope.dims / 2).map(frequency).collect();
        let factor = scale(rope, &mut frequencies);
        for (frequency, divisor) in frequencies.iter_mut().zip(divisors.unwrap_or_default()) {
            *frequency /= f64::from(*divisor);
        }
        Self {
            frequencies,
            factor,
            ..Self::default()
        }
    }

    /// Fills the table for these positions, one row each.
    pub(super) fn fill(&mut self, positions: impl Iterator<Item = u32>) {
        self.cosines.clear();
        self.sines.clear();
        for position in positions {
            for frequency in &self.frequencies {
                let (sine, cosine) = (f64::from(position) * frequency).sin_cos();
                self.cosines.push((cosine * self.factor) as f32);
                self.sines.push((sine * self.factor) as f32);
            }
        }
    }
}

/// Scales the frequencies; what comes back multiplies rotated heads.
fn scale(rope: Rope, frequencies: &mut [f64]) -> f64 {
    match rope.scaling {
        RopeScaling::None => 1.0,
        RopeScaling::Linear { factor } => {
            frequencies.iter_mut().for_each(|f| *f /= f64::from(factor));
            1.0
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        } => {
            let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
            for frequency in frequencies {
                // Turns in the original context: below `low` all is interpolated, above `high`
                // nothing is.
                let turns = f64::from(original_context) * *frequency / (2.0 * PI);
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                *frequency *= (1.0 - kept) / f64::from(factor) + kept;
            }
            1.0
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_context,
            attention_factor,
        } => {
            // The pair that makes so many turns in the original context, as a fraction.
            let pair_of = |turns: f32| {
                let wave = f64::from(original_context) / (f64::from(turns) * 2.0 * PI);
                f64::from(rope.dims) * wave.ln() / (2.0 * f64::from(rope.theta).ln())
            };
            let low = pair_of(beta_fast).floor().max(0.0);
            let high = pair_of(beta_slow).ceil().min(f64::from(rope.dims) - 1.0);
            let width = if high == low { 0.001 } else { high - low };
            for (pair, frequency) in frequencies.iter_mut().enumerate() {
                let kept = 1.0 - ((pair as f64 - low) / width).clamp(0.0, 1.0);
                *frequency *= (1.0 - kept) / f64::from(factor) + kept;
            }
            f64::from(attention_factor)
        }
        // Its divisors come from the model's files.
        RopeScaling::LongRope {
            attention_factor, ..
        } => f64::from(attention_factor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trireme_shared::model::RopeStyle;

    fn rope(scaling: RopeScaling) -> Rope {
        Rope {
            theta: 10_000.0,
            dims: 4,
            style: RopeStyle::Halves,
            scaling,
        }
    }

    #[test]
    fn scaled_frequencies_are_kept_blended_or_divided() {
        let frequencies = |scaling| RopeTable::new(rope(scaling), None).frequencies;
        assert_eq!(
            frequencies(RopeScaling::Linear { factor: 8.0 }),
            [0.125, 0.00125]
        );
        // In 1,256 tokens the first pair makes 200 turns, the second 2: halfway from 1 to 3.
        let llama3 = frequencies(RopeScaling::Llama3 {
            factor: 4.0,
            low_freq_factor: 1.0,
            high_freq_factor: 3.0,
            original_context: 1_257,
        });
        assert_eq!(llama3[0], 1.0);
        assert!(
            (llama3[1] - 0.01 * (0.5 / 4.0 + 0.5)).abs() < 1e-5,
            "{llama3:?}"
        );
        let yarn = RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_context: 1_257,
            attention_factor: 1.5,
        };
        // Of 4 dimensions: 32 turns at pair 0.4, one at 1.2, so the ramp goes from 0 to 2.
        let frequencies = frequencies(yarn);
        assert_eq!(frequencies[0], 1.0);
        assert!((frequencies[1] - 0.01 * (0.5 / 4.0 + 0.5)).abs() < 1e-12);
        let longrope = RopeScaling::LongRope {
            original_context: 64,
            attention_factor: 1.25,
        };
        let mut table = RopeTable::new(rope(longrope), Some(&[2.0, 4.0]));
        assert_eq!(table.frequencies, [0.5, 0.0025]);
        table.fill([0].into_iter());
        assert_eq!(table.cosines, [1.25, 1.25]);
        let mut table = RopeTable::new(rope(yarn), Some(&[1.0, 2.0]));
        table.fill([0, 1].into_iter());
        assert_eq!(table.cosines[..2], [1.5, 1.5]);
        assert!((table.sines[3] - 1.5 * (0.003_125f32).sin()).abs() < 1e-7);
    }

    #[test]
    fn angles_are_position_times_theta_to_the_minus_2i_over_d() {
        let mut table = RopeTable::new(rope(RopeScaling::None), None);
        table.fill([0, 3].into_iter());
        assert_eq!(&table.cosines[..2], &[1.0, 1.0]);
        assert_eq!(&table.sines[..2], &[0.0, 0.0]);
        assert!((table.sines[2] - 3f32.sin()).abs() < 1e-7);
        assert!((table.sines[3] - 0.03f32.sin()).abs() < 1e-7);
    }
}
