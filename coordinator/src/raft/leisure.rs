//! Work that may wait for everything else: on threads of the lowest priority, so that writing or reading
//! a state of a gigabyte keeps no commit waiting for a core.

use std::io;
use tokio::sync::oneshot;

/// The highest niceness: what of a busy core is left to a thread that has it is a hundredth.
const NICENESS: i32 = 19;

/// Runs `work` on a thread of its own. What it gives comes by the receiver; an error there means that it
/// panicked.
pub(super) fn run<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (give, given) = oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // On Linux this is the thread's own. Without it the work is done all the same.
            if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
                tracing::debug!(%error, "a thread keeps its priority");
            }
            // Whoever asked may be gone.
            let _ = give.send(work());
        })?;
    Ok(given)
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
