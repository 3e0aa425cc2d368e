//! A single-producer single-consumer byte ring in memory that two threads or two processes share,
//! and the [`Link`] made of two of them.
//!
//! Kept true: each side keeps its own index privately and only publishes it; the other side's index
//! is checked on every read, so a misbehaving peer can spoil the bytes but never move an access
//! outside the ring. Bytes written before an orderly close are still delivered.
//!
//! Neighbours: `shm` puts the memory in a file, `wait` decides how to wait.

use super::wait::{Patience, Waits};
use super::{Link, LinkError};
use memmap2::{MmapOptions, MmapRaw};
use rustix::thread::futex;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;
use trireme_shared::limits::LINK_PUBLISH_BYTES;

/// Two cache lines to each field: the hardware fetches lines in pairs.
#[repr(C, align(128))]
struct Line<T>(T);

/// The shared part of a ring beside its bytes. All zeroes is an empty, open ring.
#[repr(C)]
struct Control {
    /// Bytes ever written; stored by the producer.
    head: Line<AtomicU64>,
    /// Bytes ever read; stored by the consumer.
    tail: Line<AtomicU64>,
    /// 1 while the consumer sleeps (a futex word).
    reader_parked: Line<AtomicU32>,
    /// 1 while the producer sleeps (a futex word).
    writer_parked: Line<AtomicU32>,
    writer_closed: Line<AtomicU32>,
    reader_closed: Line<AtomicU32>,
}

/// Bytes of the control block, before a ring's data.
pub(super) const CONTROL_BYTES: usize = size_of::<Control>();

/// The memory both sides see, and how to tell whether the other side lives.
pub(super) struct Region {
    map: MmapRaw,
    /// Says whether the peer's process may still be alive; absent where both sides are one process.
    peer_alive: Option<Box<dyn Fn() -> bool + Send + Sync>>,
}

impl Region {
    pub(super) fn new(
        map: MmapRaw,
        peer_alive: Option<Box<dyn Fn() -> bool + Send + Sync>>,
    ) -> Self {
        Self { map, peer_alive }
    }

    fn anonymous(bytes: usize) -> io::Result<Self> {
        let map = MmapOptions::new().len(bytes).map_anon()?;
        Ok(Self::new(map.into(), None))
    }

    fn peer_alive(&self) -> bool {
        self.peer_alive.as_ref().is_none_or(|alive| alive())
    }

    pub(super) fn map(&self) -> &MmapRaw {
        &self.map
    }
}

/// One ring inside a region.
struct RingView {
    region: Arc<Region>,
    control: NonNull<Control>,
    data: NonNull<u8>,
    /// Bytes; a power of two.
    capacity: u64,
}

// SAFETY: the pointers lead into `region`, which the view keeps mapped; the control block is all
// atomics, and the data bytes are touched only under the producer/consumer protocol.
unsafe impl Send for RingView {}

impl RingView {
    /// The ring whose control block is at `control_at` and whose `capacity` bytes are at `data_at`.
    fn new(region: Arc<Region>, control_at: usize, data_at: usize, capacity: usize) -> Self {
        assert!(capacity.is_power_of_two());
        assert!(control_at.is_multiple_of(align_of::<Control>()));
        assert!(control_at + CONTROL_BYTES <= region.map.len());
        assert!(data_at + capacity <= region.map.len());
        let base = NonNull::new(region.map.as_mut_ptr()).expect("a mapping is never at null");
        // SAFETY: both offsets lie inside the mapping by the assertions above; a mapping starts on
        // a page, so the control block is aligned.
        let (control, data) = unsafe { (base.add(control_at).cast(), base.add(data_at)) };
        Self {
            region,
            control,
            data,
            capacity: capacity as u64,
        }
    }

    fn control(&self) -> &Control {
        // SAFETY: points to a live, aligned control block (see `new`); any bytes are valid atomics.
        unsafe { self.control.as_ref() }
    }

    /// Where `index` falls, and how many of `bytes` fit before the ring's end.
    fn place(&self, index: u64, bytes: usize) -> (usize, usize) {
        let at = (index & (self.capacity - 1)) as usize;
        (at, bytes.min(self.capacity as usize - at))
    }

    /// Copies `bytes` (at most `capacity`) in at `index`.
    fn copy_in(&self, index: u64, bytes: &[u8]) {
        assert!(bytes.len() as u64 <= self.capacity);
        let (at, first) = self.place(index, bytes.len());
        // SAFETY: `at + first <= capacity` and the wrapped rest is shorter than `capacity`, so both
        // copies stay in the ring; the range is free, so a peer that follows the protocol is not
        // reading it, and `bytes` cannot overlap the private mapping.
        unsafe {
            let data = self.data.as_ptr();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), data.add(at), first);
            let rest = &bytes[first..];
            std::ptr::copy_nonoverlapping(rest.as_ptr(), data, rest.len());
        }
    }

    /// Copies `bytes.len()` (at most `capacity`) out from `index`.
    fn copy_out(&self, index: u64, bytes: &mut [u8]) {
        assert!(bytes.len() as u64 <= self.capacity);
        let (at, first) = self.place(index, bytes.len());
        // SAFETY: as in `copy_in`; the range was published, so a peer that follows the protocol is
        // not writing it.
        unsafe {
            let data = self.data.as_ptr();
            std::ptr::copy_nonoverlapping(data.add(at), bytes.as_mut_ptr(), first);
            let rest = &mut bytes[first..];
            std::ptr::copy_nonoverlapping(data, rest.as_mut_ptr(), rest.len());
        }
    }

    /// Sleeps on `flag` until the peer wakes it or `slice` passes, unless `ready` already.
    fn park(&self, flag: &AtomicU32, ready: impl Fn() -> bool, slice: Duration) -> bool {
        flag.store(1, Ordering::Relaxed);
        // Pairs with the fence in `wake`: either we see the peer's index or it sees our flag.
        fence(Ordering::SeqCst);
        if !ready() {
            let timeout = futex::Timespec {
                tv_sec: slice.as_secs() as i64,
                tv_nsec: i64::from(slice.subsec_nanos()),
            };
            // Shared, not private: the peer is another process. Any outcome is followed by a poll.
            let woken = futex::wait(flag, futex::Flags::empty(), 1, Some(&timeout));
            flag.store(0, Ordering::Relaxed);
            return woken.is_ok() || self.region.peer_alive();
        }
        flag.store(0, Ordering::Relaxed);
        true
    }
}

/// Wakes the side that sleeps on `flag`, if it does. Called after an index or a close is stored.
fn wake(flag: &AtomicU32) {
    fence(Ordering::SeqCst);
    if flag.load(Ordering::Relaxed) != 0 {
        flag.store(0, Ordering::Relaxed);
        // Fails only for a bad address, which a mapped flag is not.
        let _ = futex::wake(flag, futex::Flags::empty(), 1);
    }
}

fn corrupt(peer: usize) -> LinkError {
    LinkError::Corrupt {
        peer,
        reason: "its ring index is out of range".into(),
    }
}

/// The writing end of a ring.
pub(super) struct Producer {
    ring: RingView,
    /// Bytes ever written; ours alone.
    head: u64,
    /// The consumer's index as last read.
    tail_seen: u64,
}

impl Producer {
    fn free(&mut self, wanted: usize, peer: usize) -> Result<u64, LinkError> {
        let mut used = self.head.wrapping_sub(self.tail_seen);
        if self.ring.capacity - used < wanted as u64 {
            self.tail_seen = self.ring.control().tail.0.load(Ordering::Acquire);
            used = self.head.wrapping_sub(self.tail_seen);
            if used > self.ring.capacity {
                self.tail_seen = self.head;
                return Err(corrupt(peer));
            }
        }
        Ok(self.ring.capacity - used)
    }

    fn write_all(&mut self, mut bytes: &[u8], waits: &Waits) -> Result<(), LinkError> {
        waits.check_abort()?;
        if self.ring.control().reader_closed.0.load(Ordering::Acquire) != 0 {
            return Err(LinkError::Closed { peer: waits.peer });
        }
        while !bytes.is_empty() {
            // Published in parts, so that the reader copies out while we copy in.
            let wanted = bytes.len().min(LINK_PUBLISH_BYTES);
            let free = self.free(wanted, waits.peer)? as usize;
            if free == 0 {
                self.wait_for_space(waits)?;
                continue;
            }
            let (now, later) = bytes.split_at(wanted.min(free));
            self.ring.copy_in(self.head, now);
            self.head = self.head.wrapping_add(now.len() as u64);
            let control = self.ring.control();
            control.head.0.store(self.head, Ordering::Release);
            wake(&control.reader_parked.0);
            bytes = later;
        }
        Ok(())
    }

    fn wait_for_space(&mut self, waits: &Waits) -> Result<(), LinkError> {
        let (ring, full_at) = (&self.ring, self.tail_seen);
        let control = ring.control();
        let moved = || {
            control.tail.0.load(Ordering::Acquire) != full_at
                || control.reader_closed.0.load(Ordering::Acquire) != 0
        };
        waits.until(
            Patience::Step,
            || {
                if control.reader_closed.0.load(Ordering::Acquire) != 0 {
                    return Err(LinkError::Closed { peer: waits.peer });
                }
                Ok(moved())
            },
            |slice| ring.park(&control.writer_parked.0, moved, slice),
        )
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        let control = self.ring.control();
        control.writer_closed.0.store(1, Ordering::Release);
        wake(&control.reader_parked.0);
    }
}

/// The reading end of a ring.
pub(super) struct Consumer {
    ring: RingView,
    /// Bytes ever read; ours alone.
    tail: u64,
    /// The producer's index as last read.
    head_seen: u64,
}

impl Consumer {
    fn available(&mut self, peer: usize) -> Result<u64, LinkError> {
        if self.head_seen == self.tail {
            self.head_seen = self.ring.control().head.0.load(Ordering::Acquire);
            if self.head_seen.wrapping_sub(self.tail) > self.ring.capacity {
                self.head_seen = self.tail;
                return Err(corrupt(peer));
            }
        }
        Ok(self.head_seen.wrapping_sub(self.tail))
    }

    fn read_exact(
        &mut self,
        bytes: &mut [u8],
        waits: &Waits,
        mut patience: Patience,
    ) -> Result<(), LinkError> {
        waits.check_abort()?;
        let mut done = 0;
        while done < bytes.len() {
            let available = self.available(waits.peer)? as usize;
            if available == 0 {
                self.wait_for_bytes(waits, patience)?;
                continue;
            }
            // A peer that has begun to speak owes us the rest.
            patience = Patience::Step;
            let now = available.min(bytes.len() - done).min(LINK_PUBLISH_BYTES);
            self.ring.copy_out(self.tail, &mut bytes[done..done + now]);
            done += now;
            self.tail = self.tail.wrapping_add(now as u64);
            let control = self.ring.control();
            control.tail.0.store(self.tail, Ordering::Release);
            wake(&control.writer_parked.0);
        }
        Ok(())
    }

    fn wait_for_bytes(&mut self, waits: &Waits, patience: Patience) -> Result<(), LinkError> {
        let (ring, empty_at) = (&self.ring, self.tail);
        let control = ring.control();
        let arrived = || control.head.0.load(Ordering::Acquire) != empty_at;
        let closed = || control.writer_closed.0.load(Ordering::Acquire) != 0;
        waits.until(
            patience,
            || {
                if arrived() {
                    return Ok(true);
                }
                // The close is stored after the last bytes, so look for bytes once more.
                if closed() && !arrived() {
                    return Err(LinkError::Closed { peer: waits.peer });
                }
                Ok(arrived())
            },
            |slice| ring.park(&control.reader_parked.0, || arrived() || closed(), slice),
        )
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let control = self.ring.control();
        control.reader_closed.0.store(1, Ordering::Release);
        wake(&control.writer_parked.0);
    }
}

/// Bytes of each ring of a link; powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingBytes {
    /// From the side with the lower index to the other.
    pub forward: usize,
    pub backward: usize,
}

impl RingBytes {
    /// Bytes of a region that starts with `header` bytes and holds both rings.
    pub(super) fn region_bytes(self, header: usize) -> usize {
        header + 2 * CONTROL_BYTES + self.forward + self.backward
    }
}

/// A [`Link`] over two rings.
pub struct RingLink {
    out: Producer,
    inward: Consumer,
    waits: Waits,
}

impl RingLink {
    /// One side of the link whose rings begin after `header` bytes of `region`. `forward` says that
    /// this side writes the forward ring. At most one link per side may exist on a region.
    pub(super) fn on(
        region: &Arc<Region>,
        header: usize,
        bytes: RingBytes,
        forward: bool,
        waits: Waits,
    ) -> Self {
        let data = header + 2 * CONTROL_BYTES;
        let there = RingView::new(region.clone(), header, data, bytes.forward);
        let back = RingView::new(
            region.clone(),
            header + CONTROL_BYTES,
            data + bytes.forward,
            bytes.backward,
        );
        let (out, inward) = if forward {
            (there, back)
        } else {
            (back, there)
        };
        Self {
            out: Producer {
                ring: out,
                head: 0,
                tail_seen: 0,
            },
            inward: Consumer {
                ring: inward,
                tail: 0,
                head_seen: 0,
            },
            waits,
        }
    }
}

impl Link for RingLink {
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        self.out.write_all(bytes, &self.waits)
    }

    fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), LinkError> {
        self.inward.read_exact(bytes, &self.waits, Patience::Step)
    }

    fn read_exact_idle(&mut self, bytes: &mut [u8]) -> Result<(), LinkError> {
        self.inward.read_exact(bytes, &self.waits, Patience::Idle)
    }

    fn peer(&self) -> usize {
        self.waits.peer
    }

    fn window_bytes(&self) -> usize {
        self.out.ring.capacity.min(self.inward.ring.capacity) as usize
    }
}

/// Both ends of a link inside one process: `lower` waits for the peer `lower.peer`, and so on.
pub fn pair(bytes: RingBytes, lower: Waits, higher: Waits) -> io::Result<(RingLink, RingLink)> {
    let region = Arc::new(Region::anonymous(bytes.region_bytes(0))?);
    Ok((
        RingLink::on(&region, 0, bytes, true, lower),
        RingLink::on(&region, 0, bytes, false, higher),
    ))
}

#[cfg(test)]
mod tests {
    use super::super::{Abort, WaitPolicy};
    use super::*;

    fn waits(peer: usize, abort: &Abort, deadline: Duration) -> Waits {
        Waits {
            peer,
            abort: abort.clone(),
            policy: WaitPolicy {
                deadline,
                ..WaitPolicy::crowded()
            },
        }
    }

    fn small_pair(abort: &Abort, deadline: Duration) -> (RingLink, RingLink) {
        let bytes = RingBytes {
            forward: 64,
            backward: 64,
        };
        pair(bytes, waits(1, abort, deadline), waits(0, abort, deadline)).unwrap()
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn bytes_arrive_in_order_across_many_wraps() {
        let (mut a, mut b) = small_pair(&Abort::default(), LONG);
        let sent: Vec<u8> = (0..100_003u32).map(|i| (i * 31 % 251) as u8).collect();
        let expected = sent.clone();
        let writer = std::thread::spawn(move || {
            for part in sent.chunks(97) {
                a.write_all(part).unwrap();
            }
            a
        });
        let mut got = vec![0; expected.len()];
        for part in got.chunks_mut(61) {
            b.read_exact(part).unwrap();
        }
        assert_eq!(got, expected);
        drop(writer.join().unwrap());
        // An orderly close after the last byte is a close, not corruption and not a hang.
        let after = b.read_exact(&mut [0]);
        assert!(matches!(after, Err(LinkError::Closed { peer: 0 })));
        assert!(matches!(b.write_all(&[1]), Err(LinkError::Closed { .. })));
    }

    #[test]
    fn bytes_written_before_a_close_are_delivered() {
        let (mut a, mut b) = small_pair(&Abort::default(), LONG);
        a.write_all(b"last words").unwrap();
        drop(a);
        let mut got = [0; 10];
        b.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"last words");
        assert!(matches!(
            b.read_exact(&mut got),
            Err(LinkError::Closed { .. })
        ));
    }

    #[test]
    fn silence_ends_by_deadline_and_a_full_ring_too() {
        let (mut a, _b) = small_pair(&Abort::default(), Duration::from_millis(20));
        assert!(matches!(
            a.read_exact(&mut [0]),
            Err(LinkError::Deadline { peer: 1, .. })
        ));
        assert!(matches!(
            a.write_all(&[0; 65]),
            Err(LinkError::Deadline { peer: 1, .. })
        ));
    }

    #[test]
    fn abort_ends_a_parked_idle_wait() {
        let abort = Abort::default();
        let (a, mut b) = small_pair(&abort, LONG);
        let waiter = std::thread::spawn(move || b.read_exact_idle(&mut [0]));
        let parked = &a.out.ring.control().reader_parked.0;
        while parked.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        abort.raise();
        assert!(matches!(waiter.join().unwrap(), Err(LinkError::Aborted)));
    }

    #[test]
    fn a_lying_index_is_refused_and_never_followed() {
        let (a, mut b) = small_pair(&Abort::default(), LONG);
        a.out.ring.control().head.0.store(65, Ordering::Release);
        assert!(matches!(
            b.read_exact(&mut [0; 65]),
            Err(LinkError::Corrupt { .. })
        ));
        // The reader's index running ahead of what was written is a lie as well.
        a.out
            .ring
            .control()
            .tail
            .0
            .store(1 << 40, Ordering::Release);
        let mut a = a;
        assert!(matches!(a.write_all(&[0; 64]), Ok(())));
        assert!(matches!(a.write_all(&[0]), Err(LinkError::Corrupt { .. })));
    }
}
