//! Percentiles of measured times.

/// The `p`-th percentile (0 to 100) by linear interpolation between the closest ranks; `None`
/// without samples. Sorts `samples`.
pub fn percentile(samples: &mut [f64], p: f64) -> Option<f64> {
    if samples.is_empty() {
        return None;
    }
    samples.sort_unstable_by(f64::total_cmp);
    let place = p.clamp(0.0, 100.0) / 100.0 * (samples.len() - 1) as f64;
    let low = samples[place.floor() as usize];
    let high = samples[place.ceil() as usize];
    Some(low + (high - low) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_lie_between_ranks() {
        let mut samples = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(percentile(&mut samples, 0.0), Some(1.0));
        assert_eq!(percentile(&mut samples, 50.0), Some(2.5));
        assert_eq!(percentile(&mut samples, 100.0), Some(4.0));
        assert_eq!(percentile(&mut [7.0], 99.0), Some(7.0));
        assert_eq!(percentile(&mut [], 50.0), None);
    }
}
