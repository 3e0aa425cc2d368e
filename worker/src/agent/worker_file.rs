//! `<data_dir>/worker.json`: what scripts and `cluster up` read to find this worker.

use crate::{WorkerConfig, WorkerError};
use serde::Serialize;
use std::net::SocketAddr;
use trireme_shared::identity::write_atomic;
use trireme_shared::ids::WorkerId;

const NAME: &str = "worker.json";

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
    let path = config.data_dir.join(NAME);
    let failed = |reason: String| WorkerError::File {
        path: path.clone(),
        reason,
    };
    let json = serde_json::to_vec_pretty(&file).map_err(|error| failed(error.to_string()))?;
    write_atomic(&path, &json, 0o644).map_err(|error| failed(error.to_string()))
}
