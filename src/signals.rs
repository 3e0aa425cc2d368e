//! Ctrl-C, SIGTERM and SIGHUP as calls of a closure, on a thread of its own.

use std::io;
use tokio::signal::unix::{SignalKind, signal};

/// Which signal came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Ctrl-C.
    Interrupt,
    /// SIGTERM, or the terminal closed.
    Terminate,
}

/// Calls `on` for each signal until the process ends. When this returns the handlers are in place,
/// so a signal that comes at once no longer ends the process unasked.
pub fn watch(on: impl Fn(Asked) + Send + 'static) -> io::Result<()> {
    let (ready, started) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
            {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(error))),
            };
            runtime.block_on(async {
                let install = || -> io::Result<_> {
                    Ok((
                        signal(SignalKind::interrupt())?,
                        signal(SignalKind::terminate())?,
                        signal(SignalKind::hangup())?,
                    ))
                };
                let (mut interrupt, mut terminate, mut hangup) = match install() {
                    Ok(signals) => signals,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                // The starter waits for this; it cannot have gone away.
                let _ = ready.send(Ok(()));
                loop {
                    tokio::select! {
                        Some(()) = interrupt.recv() => on(Asked::Interrupt),
                        Some(()) = terminate.recv() => on(Asked::Terminate),
                        Some(()) = hangup.recv() => on(Asked::Terminate),
                        else => return,
                    }
                }
            });
        })?;
    started
        .recv()
        .unwrap_or_else(|_| Err(io::Error::other("the signal thread ended early")))
}
