//! A coordinator's first start, and what every start needs: the data folder, the admin key, the
//! cluster's CA and this node's own certificate.
//!
//! What it keeps true: secrets lie in a folder that only their user can enter; the admin key is on
//! disk before its hash is in the state, so that a crash in between locks nobody out.

use crate::CoordinatorError;
use crate::state::journal::Journal;
use crate::state::{Command, Outcome};
use sha2::{Digest, Sha256};
use std::fs::Permissions;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use trireme_shared::identity::{ClusterAuthority, NodeId, NodeIdentity, write_atomic};
use trireme_shared::ids::CoordinatorId;

const JOURNAL_FILE: &str = "journal.redb";
const ADMIN_KEY_FILE: &str = "admin.key";

/// The one coordinator of this single-member group.
pub(crate) const COORDINATOR: CoordinatorId = CoordinatorId(1);

/// What a start finds or makes.
pub(crate) struct Boot {
    pub(crate) authority: ClusterAuthority,
    pub(crate) identity: NodeIdentity,
    pub(crate) admin_key: String,
}

/// Makes the data folder private and opens the journal in it.
pub(crate) async fn open_journal(data_dir: &Path) -> Result<Journal, CoordinatorError> {
    let folder = data_dir.to_owned();
    let work = move || {
        let failed = |e: std::io::Error| {
            CoordinatorError::Start(format!(
                "the data folder {} cannot be used: {e}. Choose another with --data-dir",
                folder.display()
            ))
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(failed)?;
        std::fs::set_permissions(&folder, Permissions::from_mode(0o700)).map_err(failed)?;
        let path = folder.join(JOURNAL_FILE);
        let journal = Journal::open(&path).map_err(|e| CoordinatorError::Start(e.to_string()))?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(journal)
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| {
        CoordinatorError::Start("the journal could not be opened: see the log".into())
    })?
}

/// Sets the cluster up if this is its first start, and checks that folder and state belong together.
pub(crate) async fn boot(journal: &Journal, data_dir: &Path) -> Result<Boot, CoordinatorError> {
    let path = data_dir.join(ADMIN_KEY_FILE);
    let known = journal.read(|s| s.cluster().cloned());
    let (ca_pem, admin_key) = match known {
        Some(cluster) => {
            let key = read_key(&path)?.ok_or_else(|| missing_key(&path))?;
            if <[u8; 32]>::from(Sha256::digest(key.as_bytes())) != cluster.admin_key_hash {
                return Err(missing_key(&path));
            }
            (cluster.ca_pem, key)
        }
        None => found(journal, &path).await?,
    };
    let start = |e: trireme_shared::identity::IdentityError| CoordinatorError::Start(e.to_string());
    let authority = ClusterAuthority::from_pem(&ca_pem).map_err(start)?;
    // A new certificate at each start: it is then as far from its end as it can be.
    let identity =
        NodeIdentity::issue(&authority, NodeId::Coordinator(COORDINATOR)).map_err(start)?;
    Ok(Boot {
        authority,
        identity,
        admin_key,
    })
}

/// The first start.
async fn found(journal: &Journal, path: &Path) -> Result<(String, String), CoordinatorError> {
    let key = match read_key(path)? {
        Some(key) => key,
        None => {
            let key = format!("sk-admin-{}", random_hex::<20>()?);
            write_atomic(path, key.as_bytes(), 0o600).map_err(|e| unwritable(path, &e))?;
            key
        }
    };
    let name = format!("trireme-{}", random_hex::<3>()?);
    let authority =
        ClusterAuthority::new(&name).map_err(|e| CoordinatorError::Start(e.to_string()))?;
    let ca_pem = authority.to_pem();
    let command = Command::Bootstrap {
        name: name.clone(),
        ca_pem: ca_pem.clone(),
        admin_key_hash: Sha256::digest(key.as_bytes()).into(),
    };
    match journal.propose(command).await {
        Ok(Outcome::Done) => {
            tracing::info!(cluster = name, "a new cluster");
            Ok((ca_pem, key))
        }
        Ok(other) => Err(CoordinatorError::Start(format!(
            "the cluster cannot be set up: {other:?}"
        ))),
        Err(error) => Err(CoordinatorError::Start(error.to_string())),
    }
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

fn missing_key(path: &Path) -> CoordinatorError {
    CoordinatorError::Start(format!(
        "{} is missing or of another cluster, and only its hash is stored: put the right file \
         back, or start with an empty --data-dir",
        path.display()
    ))
}

fn unwritable(path: &Path, error: &std::io::Error) -> CoordinatorError {
    CoordinatorError::Start(format!("{} cannot be written: {error}", path.display()))
}

fn random_hex<const N: usize>() -> Result<String, CoordinatorError> {
    let mut bytes = [0u8; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| CoordinatorError::Start(format!("the system gives no random numbers: {e}")))?;
    Ok(hex::encode(bytes))
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
    use crate::scratch::Scratch;

    #[tokio::test]
    async fn a_second_start_finds_the_same_cluster_and_a_wrong_key_is_refused() {
        let dir = Scratch::new();
        let data = dir.path().join("c1");
        let journal = open_journal(&data).await.unwrap();
        let first = boot(&journal, &data).await.unwrap();
        journal.close().await;
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&data), 0o700);
        assert_eq!(mode(&data.join(ADMIN_KEY_FILE)), 0o600);
        assert!(first.admin_key.starts_with("sk-admin-"));

        let journal = open_journal(&data).await.unwrap();
        let second = boot(&journal, &data).await.unwrap();
        assert_eq!(second.admin_key, first.admin_key);
        let fingerprint = first.authority.fingerprint();
        assert!(second.authority.fingerprint() == fingerprint);
        let hash: [u8; 32] = Sha256::digest(first.admin_key.as_bytes()).into();
        let who = journal.read(|s| s.authenticate(&hash));
        assert_eq!(who, Some(crate::state::Principal::Admin));
        std::fs::write(data.join(ADMIN_KEY_FILE), "sk-admin-other").unwrap();
        let error = boot(&journal, &data).await.err().unwrap().to_string();
        assert!(error.contains("another cluster"), "{error}");
        journal.close().await;
    }

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
