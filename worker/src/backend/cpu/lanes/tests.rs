//! What is computed near enough, on each instruction set this machine has.

use super::{Lanes, kernel};
use crate::backend::Isa;

kernel! {
    /// Of sixteen numbers powers of two and, of those above 1, inverses.
    fn near(x: *const f32, powers: *mut f32, inverses: *mut f32) = near_lanes
}

#[inline(always)]
unsafe fn near_lanes<V: Lanes>(x: *const f32, powers: *mut f32, inverses: *mut f32) {
    V::load(x).exp2_near().store(powers);
    let inverse = V::load(x).max(V::splat(1.0)).inverse_near();
    inverse.store(inverses);
}

#[test]
fn what_is_near_is_as_near_as_it_says() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        let numbers: Vec<f32> = (-1_250..=1_260).map(|x| x as f32 * 0.1).collect();
        for x in numbers.chunks_exact(16) {
            let (mut powers, mut inverses) = ([0f32; 16], [0f32; 16]);
            // SAFETY: sixteen numbers each; the machine has the instruction set.
            unsafe { near(isa, x.as_ptr(), powers.as_mut_ptr(), inverses.as_mut_ptr()) };
            for (at, &x) in x.iter().enumerate() {
                let off = |got: f32, want: f64| (f64::from(got) / want - 1.0).abs();
                assert!(off(powers[at], f64::from(x).exp2()) < 6e-5, "{isa:?} 2^{x}");
                let inverse = 1.0 / f64::from(x.max(1.0));
                assert!(off(inverses[at], inverse) < 1e-4, "{isa:?} 1 / {x}");
            }
        }
        // What is relative to itself stays as it is, to the last bit; far below there is next to nothing.
        let x = [0.0, -126.0, -127.0, -1e30, 0.0, 0.0, 0.0, 0.0].repeat(2);
        let (mut powers, mut inverses) = ([0f32; 16], [0f32; 16]);
        // SAFETY: as above.
        unsafe { near(isa, x.as_ptr(), powers.as_mut_ptr(), inverses.as_mut_ptr()) };
        assert_eq!(
            powers[..4],
            [1.0, f32::MIN_POSITIVE, f32::MIN_POSITIVE, f32::MIN_POSITIVE]
        );
    }
}
