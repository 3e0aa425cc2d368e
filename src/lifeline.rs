//! A child's tie to the process that started it: stdin is a pipe whose other end only the starter
//! holds. However the starter ends, `kill -9` included, the pipe closes and the child ends too.

use std::io::Read;
use trireme_shared::limits;

/// Watches stdin on a thread; at its end calls `on_lost`, and if the process still runs after
/// `limits::LIFELINE_EXIT_DEADLINE`, ends it hard.
pub fn watch(on_lost: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new()
        .name("lifeline".into())
        .spawn(move || {
            let mut stdin = std::io::stdin().lock();
            let mut byte = [0u8; 64];
            loop {
                match stdin.read(&mut byte) {
                    Ok(0) => break,
                    Ok(_) => continue,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(_) => break,
                }
            }
            on_lost();
            std::thread::sleep(limits::LIFELINE_EXIT_DEADLINE);
            tracing::error!("did not stop in time after its starter vanished; ending now");
            std::process::exit(1);
        })?;
    Ok(())
}
