//! How fast this machine's memory can be read: the limit of batch-1 decode, measured beside it.

use memmap2::{Advice, MmapMut};
use std::time::{Duration, Instant};

/// Bytes ORed together at a time: enough accumulators that only memory is waited for.
const LANES: usize = 512;
/// How far ahead to ask for memory; reading gets no faster beyond.
const AHEAD: usize = 4 << 10;
/// How long reading is repeated; the fastest round counts.
const MEASURED: Duration = Duration::from_millis(500);
/// Passes over the buffer in one round, so that starting threads costs next to nothing.
const PASSES: usize = 8;

/// A buffer in huge pages (as weights are), to be read.
pub(crate) struct Reader {
    buffer: MmapMut,
    threads: usize,
}

impl Reader {
    /// Of `bytes` bytes.
    ///
    /// # Errors
    /// If the buffer cannot be had.
    pub(crate) fn new(bytes: usize, threads: usize) -> std::io::Result<Self> {
        let mut buffer = MmapMut::map_anon(bytes.max(LANES))?;
        // A machine without huge pages measures what it has.
        let _ = buffer.advise(Advice::HugePage);
        buffer.fill(1);
        let threads = threads.max(1);
        Ok(Self { buffer, threads })
    }

    /// Bytes a second that all threads read together, each walking its own part from front to back,
    /// so many times.
    pub(crate) fn bytes_per_second(&self, passes: usize) -> f64 {
        let part = self.buffer.len().div_ceil(self.threads);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for part in self.buffer.chunks(part) {
                scope.spawn(move || {
                    for _ in 0..passes {
                        std::hint::black_box(read(std::hint::black_box(part)));
                    }
                });
            }
        });
        (passes * self.buffer.len()) as f64 / begun.elapsed().as_secs_f64()
    }
}

/// Bytes a second that `threads` threads read together of a buffer of `bytes`, in the fastest of some
/// rounds.
///
/// # Errors
/// If the buffer cannot be had.
pub fn read_bandwidth(bytes: usize, threads: usize) -> std::io::Result<f64> {
    let reader = Reader::new(bytes, threads)?;
    let (begun, mut fastest) = (Instant::now(), 0f64);
    while begun.elapsed() < MEASURED {
        fastest = fastest.max(reader.bytes_per_second(PASSES));
    }
    Ok(fastest)
}

/// All bytes ORed together, by the widest loads there are.
fn read(bytes: &[u8]) -> u8 {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw")]
        fn avx512(bytes: &[u8]) -> u8 {
            or_together(bytes)
        }
        #[target_feature(enable = "avx2")]
        fn avx2(bytes: &[u8]) -> u8 {
            or_together(bytes)
        }
        if is_x86_feature_detected!("avx512bw") {
            // SAFETY: the instructions were found to be there.
            return unsafe { avx512(bytes) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { avx2(bytes) };
        }
    }
    or_together(bytes)
}

#[inline(always)]
fn or_together(bytes: &[u8]) -> u8 {
    let mut seen = [0u8; LANES];
    let chunks = bytes.chunks_exact(LANES);
    let rest = chunks.remainder().iter().fold(0, |a, b| a | b);
    for chunk in chunks {
        #[cfg(target_arch = "x86_64")]
        for line in (0..LANES).step_by(64) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let at = chunk.as_ptr().wrapping_add(AHEAD + line);
            // SAFETY: a prefetch takes any address and touches nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
        }
        for (seen, byte) in seen.iter_mut().zip(chunk) {
            *seen |= byte;
        }
    }
    seen.iter().fold(rest, |a, b| a | b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_read() {
        for at in [0, 511, 512, 1_300] {
            let mut bytes = vec![0; 1_301];
            bytes[at] = 4;
            assert_eq!((read(&bytes), or_together(&bytes)), (4, 4), "{at}");
        }
        assert!(read_bandwidth(1 << 20, 3).unwrap() > 0.0);
    }
}
