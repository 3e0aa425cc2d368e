//! Work that may wait for everything else: on threads of the lowest priority, so that writing or reading
//! a state of a gigabyte keeps no commit waiting for a core.

use std::io;
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// The highest niceness: what of a busy core is left to a thread that has it is a hundredth. Linux's idle
/// policy does worse: its scheduler takes a core that only such a thread uses for a free one and wakes others
/// there, and a kernel that is not preempted then lets them wait for the end of a page fault or a write.
const NICENESS: i32 = 19;

/// Runs `work` on a thread of its own. What it gives comes by the receiver; an error there means that it
/// panicked.
pub(super) fn run<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (give, given) = oneshot::channel();
    // Whoever asked may be gone.
    spawn(name, move || drop(give.send(work())))?;
    Ok(given)
}

/// The same, for who waits on a thread.
pub(super) fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(move || {
        // On Linux this is the thread's own. Without it the work is done all the same.
        if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
            tracing::debug!(%error, "a thread keeps its priority");
        }
        work()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_work_is_of_low_priority() {
        let own = || rustix::process::getpriority_process(None).unwrap();
        let before = own();
        let given = run("test", own).unwrap();
        assert_eq!(given.blocking_recv().unwrap(), NICENESS);
        assert_eq!(own(), before);
    }
}
