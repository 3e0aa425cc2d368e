//! Anonymous memory straight from the kernel, on huge pages where it has them: for weights, and for KV
//! pages, which cost nothing until they are written. All starts zeroed.

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::io;
use std::sync::Arc;

/// The size of a huge page on x86-64 and on most ARM kernels; only a hint depends on it.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Weights are placed one after the other in pieces of at least this, so that small matrices share
/// huge pages and the walk through a layer is a walk through memory. Unused ends are never touched.
const CHUNK_BYTES: usize = 64 << 20;

/// A private, zeroed mapping, aligned to a huge page.
pub(super) struct Mapping {
    base: *mut c_void,
    length: usize,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the mapping is plain memory owned by this value; who may write where is settled by the
// types that hand out pointers into it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` (0 counts as 1).
    pub(super) fn new(bytes: usize) -> io::Result<Self> {
        let bytes = bytes.max(1);
        let length = bytes
            .checked_add(HUGE_PAGE_BYTES)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        #[cfg(target_os = "linux")]
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        #[cfg(not(target_os = "linux"))]
        let flags = MapFlags::PRIVATE;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), length, protection, flags)? };
        let skip = base.cast::<u8>().align_offset(HUGE_PAGE_BYTES);
        // SAFETY: `skip` is below a huge page, by which the mapping is longer than `bytes`.
        let start = unsafe { base.cast::<u8>().add(skip) };
        #[cfg(target_os = "linux")]
        // SAFETY: the range lies in the mapping. It is a hint: failure only costs speed.
        let _ =
            unsafe { rustix::mm::madvise(start.cast(), bytes, rustix::mm::Advice::LinuxHugepage) };
        Ok(Self {
            base,
            length,
            start,
            bytes,
        })
    }

    pub(super) fn start(&self) -> *mut u8 {
        self.start
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range that was mapped; nothing points into it any more, since
        // everything that does holds the mapping.
        let _ = unsafe { munmap(self.base, self.length) };
    }
}

/// A piece of a mapping, 64-byte aligned, with the mapping kept alive.
#[derive(Clone)]
pub(super) struct Piece {
    mapping: Arc<Mapping>,
    offset: usize,
}

impl Piece {
    pub(super) fn start(&self) -> *mut u8 {
        // SAFETY: the arena placed `offset` inside the mapping.
        unsafe { self.mapping.start().add(self.offset) }
    }
}

/// Hands out pieces one after the other; they are freed when the last of a chunk is.
#[derive(Default)]
pub(super) struct Arena {
    chunk: Option<Arc<Mapping>>,
    used: usize,
}

impl Arena {
    /// `bytes` of zeroes, followed by at least a cache line that may be read.
    pub(super) fn take(&mut self, bytes: usize) -> io::Result<Piece> {
        let room = bytes
            .checked_next_multiple_of(64)
            .and_then(|b| b.checked_add(64))
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let chunk = match &self.chunk {
            Some(chunk) if chunk.bytes - self.used >= room => chunk.clone(),
            _ => {
                self.used = 0;
                let fresh = Arc::new(Mapping::new(room.max(CHUNK_BYTES))?);
                self.chunk.insert(fresh).clone()
            }
        };
        let offset = self.used;
        self.used += room - 64;
        Ok(Piece {
            mapping: chunk,
            offset,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_aligned_zeroed_and_apart() {
        let mut arena = Arena::default();
        let sizes = [1usize, 64, 100, CHUNK_BYTES + 1, 320];
        let pieces: Vec<Piece> = sizes.iter().map(|&b| arena.take(b).unwrap()).collect();
        for (mark, (piece, bytes)) in pieces.iter().zip(sizes).enumerate() {
            assert_eq!(piece.start() as usize % 64, 0);
            // SAFETY: the piece is ours and was asked for with this length.
            let all = unsafe { std::slice::from_raw_parts_mut(piece.start(), bytes) };
            assert!(all.iter().all(|&b| b == 0), "another piece wrote here");
            all.fill(mark as u8 + 1);
        }
    }
}
