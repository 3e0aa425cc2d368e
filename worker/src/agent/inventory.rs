//! What this worker tells the coordinator about itself.

use crate::WorkerConfig;
use rustix::fs::stat;
use std::net::SocketAddr;
use trireme_shared::wire::control::Inventory;

pub fn inventory(config: &WorkerConfig, listening: SocketAddr) -> Inventory {
    Inventory {
        host: host_id(),
        hostname: read("/proc/sys/kernel/hostname").unwrap_or_else(|| "unknown".into()),
        pid: std::process::id(),
        threads: u32::try_from(config.threads).unwrap_or(u32::MAX),
        memory_bytes: config.memory_bytes,
        isa: config.isa.name().into(),
        data_port: listening.port(),
        advertise: config.advertise.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
    }
}

/// Equal for two processes exactly if they see one `/dev/shm` and may open each other's files in it:
/// the same boot of the same kernel, the same mount, the same user. Containers on one machine share
/// the boot id but usually not the mount.
fn host_id() -> String {
    let parts = read("/proc/sys/kernel/random/boot_id").zip(stat("/dev/shm").ok());
    let user = rustix::process::geteuid().as_raw();
    match parts {
        Some((boot, shm)) => format!("{boot}/{:x}-{:x}/{user}", shm.st_dev, shm.st_ino),
        // Where that cannot be told, the worker shares memory with nobody.
        None => format!(
            "alone/{}/{:?}",
            std::process::id(),
            std::time::Instant::now()
        ),
    }
}

fn read(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_the_same_for_all_who_share_its_memory() {
        assert_eq!(host_id(), host_id());
        assert!(!host_id().starts_with("alone"), "this machine has /dev/shm");
    }
}
