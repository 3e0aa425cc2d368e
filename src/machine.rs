//! What this machine can give to workers.

use std::num::NonZeroUsize;

/// Share of the free memory that workers may take by default: the rest is for the page cache,
/// which holds the model file, and for everything else that runs here.
const MEMORY_SHARE_PERCENT: u64 = 80;

/// Where a machine tells nothing about its memory.
const MEMORY_UNKNOWN_BYTES: u64 = 2 << 30;

/// Threads this process may run at once (affinity and cgroup quota respected).
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Bytes that may be offered by default: a share of what is available now, within the cgroup.
pub fn memory_bytes() -> u64 {
    let available = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| meminfo_available(&text));
    let allowed = cgroup_left();
    let free = match (available, allowed) {
        (Some(a), Some(b)) => a.min(b),
        (Some(a), None) | (None, Some(a)) => a,
        (None, None) => return MEMORY_UNKNOWN_BYTES,
    };
    free / 100 * MEMORY_SHARE_PERCENT
}

/// `MemAvailable` of proc(5)'s `/proc/meminfo`, in bytes.
fn meminfo_available(text: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1_024)
}

/// What the cgroup (version 2) still allows. Page cache counts as used there though it can be
/// dropped, so only anonymous memory is subtracted from the limit.
fn cgroup_left() -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    let limit: u64 = read("memory.max")?.trim().parse().ok()?;
    let used = read("memory.stat")
        .and_then(|text| {
            let line = text.lines().find(|l| l.starts_with("anon "))?;
            line.split_whitespace().nth(1)?.parse().ok()
        })
        .unwrap_or(0);
    Some(limit.saturating_sub(used))
}

#[cfg(test)]
mod tests {
    #[test]
    fn available_memory_is_read_in_bytes() {
        let text = "MemTotal:       8000000 kB\nMemAvailable:   4000000 kB\n";
        assert_eq!(super::meminfo_available(text), Some(4_096_000_000));
        assert_eq!(super::meminfo_available("MemTotal: 1 kB\n"), None);
    }
}
