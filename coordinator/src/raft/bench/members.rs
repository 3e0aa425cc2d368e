//! Members of a group for measuring, each with a log and a QUIC endpoint of its own.

use crate::raft::group::Group;
use crate::raft::member::Member;
use crate::raft::snapshots;
use crate::raft::storage::{Folder, LogId, Wal};
use crate::state::{ClusterId, Command, State};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use trireme_shared::identity::{ClusterAuthority, NodeId, NodeIdentity};
use trireme_shared::ids::CoordinatorId;
use trireme_shared::transport::{Endpoint, Protocol};
use trireme_shared::wire::control::CoordinatorAddress;

pub(super) struct Bench {
    folder: PathBuf,
    authority: ClusterAuthority,
    seats: BTreeMap<u32, Seat>,
}

/// Where a member is reached, and the member once it runs.
struct Seat {
    endpoint: Endpoint,
    group: Arc<OnceLock<Group>>,
}

impl Bench {
    /// Endpoints for members 1 to `members`; none runs yet.
    pub fn bind(folder: &Path, members: u32) -> Result<Self, String> {
        let authority = ClusterAuthority::new("bench").map_err(|e| e.to_string())?;
        let mut seats = BTreeMap::new();
        for id in 1..=members {
            let node = NodeId::Coordinator(CoordinatorId(id));
            let identity = NodeIdentity::issue(&authority, node).map_err(|e| e.to_string())?;
            let listen = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
            let endpoint = Endpoint::bind(listen, &identity, &[Protocol::Raft, Protocol::Group]);
            let seat = Seat {
                endpoint: endpoint.map_err(|e| e.to_string())?,
                group: Arc::default(),
            };
            tokio::spawn(serve(seat.endpoint.clone(), Arc::clone(&seat.group)));
            seats.insert(id, seat);
        }
        Ok(Self {
            folder: folder.to_owned(),
            authority,
            seats,
        })
    }

    /// Starts member `id`: one that founded the group with `founded`, or one that has nothing yet.
    pub fn start(&self, id: u32, founded: Option<&State>) -> Result<Group, String> {
        let path = self.folder.join(format!("member-{id}"));
        self.start_in(&path, id, founded)
    }

    /// The same, with its log in another folder.
    pub fn start_in(&self, path: &Path, id: u32, founded: Option<&State>) -> Result<Group, String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        std::fs::create_dir_all(path).map_err(|e| text(&e))?;
        let open = || {
            let disk = Folder::open(path).map_err(|e| text(&e))?;
            Wal::open(disk, LogId([id as u8; 16])).map_err(|e| text(&e))
        };
        let (mut wal, mut recovered) = open()?;
        if let Some(state) = founded {
            let voters: Vec<u64> = self.seats.keys().map(|id| u64::from(*id)).collect();
            Member::found(&mut wal, &voters, state).map_err(|e| text(&e))?;
            drop(wal);
            (wal, recovered) = open()?;
        }
        let state = match &recovered.snapshot {
            Some(file) => snapshots::read(wal.disk(), file).map_err(|e| text(&e))?,
            None => State::default(),
        };
        let group = Group::start(CoordinatorId(id), wal, recovered, state);
        let group = group.map_err(|e| text(&e))?;
        let seat = self.seats.get(&id).ok_or("it has no endpoint")?;
        group.seeds(&self.addresses());
        group.announce_address(&seat.endpoint.local_addr().to_string());
        group.attach(&seat.endpoint);
        match seat.group.set(group.clone()) {
            Ok(()) => Ok(group),
            Err(_) => Err(format!("member {id} runs already")),
        }
    }

    /// Gives the group its first command.
    pub async fn bootstrap(&self, group: &Group) -> Result<(), String> {
        let bootstrap = Command::Bootstrap {
            name: "bench".into(),
            cluster: ClusterId([1; 16]),
            authority_pem: self.authority.to_pem(),
            admin_key_hash: [0; 32],
        };
        group.propose(bootstrap).await.map_err(|e| e.to_string())?;
        Ok(())
    }

    fn addresses(&self) -> Vec<CoordinatorAddress> {
        let seats = self.seats.iter();
        let all = seats.map(|(id, seat)| CoordinatorAddress {
            id: CoordinatorId(*id),
            control: seat.endpoint.local_addr().to_string(),
        });
        all.collect()
    }
}

async fn serve(endpoint: Endpoint, group: Arc<OnceLock<Group>>) {
    while let Some(connection) = endpoint.accept().await {
        let Some(group) = group.get().cloned() else {
            connection.refuse("this member does not run yet");
            continue;
        };
        tokio::spawn(async move {
            match connection.protocol() {
                Protocol::Raft => group.serve_raft(&connection).await,
                _ => group.serve_group(&connection).await,
            }
        });
    }
}
