//! A coordinator's start: its data folder, its group and its identity.
//!
//! What it keeps true: secrets lie in a folder that only their user can enter; the admin key is on
//! disk before its hash is in the state, so that a crash in between locks nobody out.
//!
//! `enter` founds, joins or resumes the group; `upkeep` keeps what others know of this coordinator, and
//! what it knows of them, up to date while it runs.

mod enter;
mod upkeep;

pub(crate) use enter::{Entered, enter};
pub(crate) use upkeep::Upkeep;

use crate::CoordinatorError;
use std::fs::Permissions;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use trireme_shared::identity::write_atomic;

pub(crate) const ADMIN_KEY_FILE: &str = "admin.key";
/// Folder of the replicated log, in the data folder.
pub(crate) const LOG_FOLDER: &str = "log";

/// Makes a folder that only this user can enter.
pub(crate) fn private_folder(folder: &Path) -> Result<(), CoordinatorError> {
    let failed = |e: std::io::Error| {
        CoordinatorError::Start(format!(
            "the data folder {} cannot be used: {e}. Choose another with --data-dir",
            folder.display()
        ))
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(failed)?;
    std::fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(failed)
}

fn read_key(path: &Path) -> Result<Option<String>, CoordinatorError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(CoordinatorError::Start(format!(
            "the admin key {} cannot be read: {e}",
            path.display()
        ))),
    }
}

fn unwritable(path: &Path, error: &std::io::Error) -> CoordinatorError {
    CoordinatorError::Start(format!("{} cannot be written: {error}", path.display()))
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], CoordinatorError> {
    let mut bytes = [0u8; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| CoordinatorError::Start(format!("the system gives no random numbers: {e}")))?;
    Ok(bytes)
}

fn random_hex<const N: usize>() -> Result<String, CoordinatorError> {
    Ok(hex::encode(random::<N>()?))
}

pub(crate) fn new_admin_key() -> Result<String, CoordinatorError> {
    Ok(format!("sk-admin-{}", random_hex::<20>()?))
}

pub(crate) fn new_cluster_name() -> Result<String, CoordinatorError> {
    Ok(format!("trireme-{}", random_hex::<3>()?))
}

/// The file that tells `cluster up` and the user where this coordinator listens.
pub(crate) fn address_file(data_dir: &Path) -> PathBuf {
    data_dir.join("coordinator.json")
}

pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), CoordinatorError> {
    write_atomic(path, bytes, 0o600).map_err(|e| unwritable(path, &e))
}

/// An address that others can dial: a socket bound to every interface is told by the address of the
/// interface that leads out, or loopback on a machine that has none.
pub(crate) fn reachable(bound: SocketAddr) -> SocketAddr {
    if !bound.ip().is_unspecified() {
        return SocketAddr::new(bound.ip().to_canonical(), bound.port());
    }
    // Connecting a UDP socket sends nothing: it only asks the routing table. The targets are of the
    // documentation ranges (RFC 5737, RFC 3849).
    let v4 = || outgoing(Ipv4Addr::UNSPECIFIED.into(), "192.0.2.1:9");
    let v6 = || outgoing(Ipv6Addr::UNSPECIFIED.into(), "[2001:db8::1]:9");
    let ip = if bound.is_ipv4() {
        v4()
    } else {
        v4().or_else(v6)
    };
    let ip = ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    SocketAddr::new(ip, bound.port())
}

fn outgoing(from: IpAddr, to: &str) -> Option<IpAddr> {
    let socket = UdpSocket::bind(SocketAddr::new(from, 0)).ok()?;
    socket.connect(to).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn an_advertised_address_is_never_unspecified() {
        for bound in ["0.0.0.0:80", "[::]:80"] {
            let address = reachable(bound.parse().unwrap());
            assert!(!address.ip().is_unspecified());
            assert_eq!(address.port(), 80);
        }
        let given: SocketAddr = "127.0.0.1:81".parse().unwrap();
        assert_eq!(reachable(given), given);
    }
}
