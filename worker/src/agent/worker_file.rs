//! Small files in the data folder: `worker.json`, what scripts and `cluster up` read to find this
//! worker; `coordinators.json`, the group as it last was, so that a restart finds any of it.

use crate::{WorkerConfig, WorkerError};
use serde::Serialize;
use std::net::SocketAddr;
use std::path::Path;
use trireme_shared::identity::write_atomic;
use trireme_shared::ids::WorkerId;
use trireme_shared::wire::control::CoordinatorAddress;

const NAME: &str = "worker.json";
const COORDINATORS: &str = "coordinators.json";

#[derive(Serialize)]
struct WorkerFile {
    id: WorkerId,
    pid: u32,
    /// `ip:port` of this worker's own QUIC endpoint.
    data_addr: String,
}

/// Written once a coordinator welcomed this worker, and again after each reconnect.
pub fn write(
    config: &WorkerConfig,
    worker: WorkerId,
    address: SocketAddr,
) -> Result<(), WorkerError> {
    let file = WorkerFile {
        id: worker,
        pid: std::process::id(),
        data_addr: address.to_string(),
    };
    write_json(&config.data_dir, NAME, &file)
}

pub fn write_coordinators(
    data_dir: &Path,
    group: &[CoordinatorAddress],
) -> Result<(), WorkerError> {
    write_json(data_dir, COORDINATORS, group)
}

/// What the last `write_coordinators` left; nothing where there is no such file. One that is damaged
/// is a hint lost, not a reason to stop.
pub fn read_coordinators(data_dir: &Path) -> Vec<CoordinatorAddress> {
    let Ok(json) = std::fs::read(data_dir.join(COORDINATORS)) else {
        return Vec::new();
    };
    serde_json::from_slice(&json).unwrap_or_else(|error| {
        tracing::warn!(%error, "{COORDINATORS} is damaged and ignored");
        Vec::new()
    })
}

fn write_json<T: Serialize + ?Sized>(
    data_dir: &Path,
    name: &str,
    value: &T,
) -> Result<(), WorkerError> {
    let path = data_dir.join(name);
    let failed = |reason: String| WorkerError::File {
        path: path.clone(),
        reason,
    };
    let json = serde_json::to_vec_pretty(value).map_err(|error| failed(error.to_string()))?;
    write_atomic(&path, &json, 0o644).map_err(|error| failed(error.to_string()))
}
