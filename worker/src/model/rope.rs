//! Angles of rotary position embeddings (Su et al. 2021, "RoFormer").

use trireme_shared::model::Rope;

/// Cosines and sines of a step's rows, shared by all layers. Row-major, `dims / 2` a row.
#[derive(Default)]
pub(super) struct RopeTable {
    /// Radians per position of each pair.
    frequencies: Vec<f64>,
    pub(super) cosines: Vec<f32>,
    pub(super) sines: Vec<f32>,
}

impl RopeTable {
    pub(super) fn new(rope: Rope) -> Self {
        let dims = f64::from(rope.dims);
        let frequency = |pair: u32| f64::from(rope.theta).powf(-2.0 * f64::from(pair) / dims);
        Self {
            frequencies: (0..rope.dims / 2).map(frequency).collect(),
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
                self.cosines.push(cosine as f32);
                self.sines.push(sine as f32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trireme_shared::model::RopeStyle;

    #[test]
    fn angles_are_position_times_theta_to_the_minus_2i_over_d() {
        let mut table = RopeTable::new(Rope {
            theta: 10_000.0,
            dims: 4,
            style: RopeStyle::Halves,
        });
        table.fill([0, 3].into_iter());
        assert_eq!(&table.cosines[..2], &[1.0, 1.0]);
        assert_eq!(&table.sines[..2], &[0.0, 0.0]);
        assert!((table.sines[2] - 3f32.sin()).abs() < 1e-7);
        assert!((table.sines[3] - 0.03f32.sin()).abs() < 1e-7);
    }
}
