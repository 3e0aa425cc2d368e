//! Into the group: found a new one, join one with a token, or take up the one in the data folder.
//!
//! What it keeps true: a data folder belongs to one member of one group for ever; a founder's first
//! snapshot is on disk before the group starts; a joiner's certificate is on disk before it speaks.

use super::{
    ADMIN_KEY_FILE, LOG_FOLDER, new_admin_key, new_cluster_name, private_folder, random, read_key,
    unwritable,
};
use crate::raft::group::{Group, GroupError, Kind, Terms};
use crate::raft::member::Member;
use crate::raft::snapshots;
use crate::raft::storage::{Folder, LogId, Recovered, StorageError, Wal};
use crate::raft::types::Index;
use crate::state::{ClusterId, Command, Origin, Outcome, State, import};
use crate::{CoordinatorConfig, CoordinatorError};
use sha2::{Digest, Sha256};
use std::path::Path;
use tokio::sync::watch;
use tokio::time::timeout;
use trireme_shared::identity::{ClusterAuthority, JoinToken, NodeId, NodeIdentity, write_atomic};
use trireme_shared::ids::CoordinatorId;
use trireme_shared::limits;
use trireme_shared::transport::join::join;
use trireme_shared::wire::control::CoordinatorAddress;

/// The command log of releases before the group.
const OLD_JOURNAL: &str = "journal.redb";

/// The member that this process is.
pub(crate) struct Entered {
    pub(crate) group: Group,
    pub(crate) identity: NodeIdentity,
    /// Tells of every change of the authorities since `identity` was made.
    pub(crate) authorities: watch::Receiver<u64>,
    /// Only in the data folder of the coordinator that founded the group.
    pub(crate) admin_key: Option<String>,
    /// This member has just joined and must be let into the group before it knows anything.
    pub(crate) newcomer: bool,
}

/// What the data folder holds.
struct Opened {
    wal: Wal<Folder>,
    recovered: Recovered,
    state: State,
    identity: Option<NodeIdentity>,
}

/// Founds, joins or resumes.
pub(crate) async fn enter(config: &CoordinatorConfig) -> Result<Entered, CoordinatorError> {
    let data_dir = config.data_dir.clone();
    let opened = blocking(move || open(&data_dir)).await?;
    let empty = opened.recovered.snapshot.is_none();
    match (empty, &opened.identity, &config.join) {
        (true, None, None) => found(config, opened).await,
        (true, None, Some(joining)) => {
            let token: JoinToken = joining
                .token
                .as_deref()
                .unwrap_or_default()
                .parse()
                .map_err(|e: trireme_shared::identity::IdentityError| {
                    CoordinatorError::Start(format!("--join needs a coordinator token: {e}"))
                })?;
            let joined = join(&joining.addresses, &token)
                .await
                .map_err(|e| CoordinatorError::Start(e.to_string()))?;
            let NodeId::Coordinator(own) = joined.identity.node() else {
                return Err(CoordinatorError::Start(format!(
                    "the token is for a worker ({}): make one with `cluster token create --role \
                     coordinator`",
                    joined.identity.node()
                )));
            };
            joined.identity.save(&config.data_dir).map_err(start)?;
            tracing::info!(id = %own, "joined");
            newcomer(own, opened, joined.identity, &joined.coordinators)
        }
        // It joined and was stopped before the group let it in.
        (true, Some(identity), _) => {
            let NodeId::Coordinator(own) = identity.node() else {
                return Err(CoordinatorError::Start(format!(
                    "{} belongs to {}: choose another --data-dir",
                    config.data_dir.display(),
                    identity.node()
                )));
            };
            let addresses = config.join.as_ref().map_or(&[][..], |j| &j.addresses);
            let seeds: Vec<_> = (1..)
                .zip(addresses)
                .map(|(n, control)| CoordinatorAddress {
                    id: CoordinatorId(n),
                    control: control.clone(),
                })
                .collect();
            let identity = identity.clone();
            newcomer(own, opened, identity, &seeds)
        }
        (false, _, _) => resume(config, opened).await,
    }
}

fn open(data_dir: &Path) -> Result<Opened, CoordinatorError> {
    private_folder(data_dir)?;
    let log = data_dir.join(LOG_FOLDER);
    private_folder(&log)?;
    let folder = Folder::open(&log).map_err(storage)?;
    let (wal, recovered) = Wal::open(folder, LogId(random()?)).map_err(storage)?;
    if let Some(cut) = &recovered.cut {
        tracing::warn!(
            file = cut.file,
            offset = cut.offset,
            "a write that was never finished was cut off the log"
        );
    }
    let state = match &recovered.snapshot {
        Some(file) => snapshots::read(wal.disk(), file).map_err(storage)?,
        None => State::default(),
    };
    let identity = NodeIdentity::load(data_dir).map_err(start)?;
    Ok(Opened {
        wal,
        recovered,
        state,
        identity,
    })
}

/// The first start of a new group, or of one whose state an older release kept.
async fn found(
    config: &CoordinatorConfig,
    mut opened: Opened,
) -> Result<Entered, CoordinatorError> {
    let own = CoordinatorId(1);
    let data_dir = config.data_dir.clone();
    let opened = blocking(move || {
        let old = import::journal_v1(&data_dir.join(OLD_JOURNAL))
            .map_err(|e| CoordinatorError::Start(e.to_string()))?;
        if old.is_some() {
            tracing::info!("taking up the state of an older release");
        }
        opened.state = old.unwrap_or_default();
        Member::found(&mut opened.wal, &[u64::from(own.0)], &opened.state)
            .map_err(|e| CoordinatorError::Start(e.to_string()))?;
        drop(opened);
        open(&data_dir)
    })
    .await?;
    let group = begin(own, opened)?;
    let entered = async {
        lead(&group).await?;
        let admin_key = match group.read(|s| s.cluster().is_some()) {
            true => check_key(&group, &config.data_dir)?,
            false => Some(set_up(&group, &config.data_dir).await?),
        };
        let authorities = group.changes(Kind::Authorities);
        let identity = own_identity(&group, own)?;
        identity.save(&config.data_dir).map_err(start)?;
        Ok(Entered {
            group: group.clone(),
            identity,
            authorities,
            admin_key,
            newcomer: false,
        })
    };
    match entered.await {
        Ok(entered) => Ok(entered),
        Err(error) => {
            group.close().await;
            Err(error)
        }
    }
}

fn newcomer(
    own: CoordinatorId,
    opened: Opened,
    identity: NodeIdentity,
    seeds: &[CoordinatorAddress],
) -> Result<Entered, CoordinatorError> {
    let group = begin(own, opened)?;
    group.seeds(seeds);
    Ok(Entered {
        authorities: group.changes(Kind::Authorities),
        group,
        identity,
        admin_key: None,
        newcomer: true,
    })
}

/// A restart. It does not wait for the others: what this replica holds can be read at once.
async fn resume(config: &CoordinatorConfig, opened: Opened) -> Result<Entered, CoordinatorError> {
    let members = opened
        .recovered
        .snapshot
        .as_ref()
        .map(|s| s.meta.members.clone());
    let saved = opened.identity.clone();
    let committed = opened.recovered.ballot.commit;
    let own = match saved.as_ref().map(NodeIdentity::node) {
        Some(NodeId::Coordinator(own)) => own,
        Some(other) => {
            return Err(CoordinatorError::Start(format!(
                "{} belongs to {other}: choose another --data-dir",
                config.data_dir.display()
            )));
        }
        // Stopped between founding and its first certificate.
        None if members.is_some_and(|m| m.voters == [1]) => CoordinatorId(1),
        None => {
            return Err(CoordinatorError::Start(format!(
                "{} holds a replicated log but no identity.pem, which says whose it is: put that \
                 file back, or join again with an empty --data-dir",
                config.data_dir.display()
            )));
        }
    };
    let group = begin(own, opened)?;
    let entered = async {
        if group.read(|s| s.cluster().is_none()) && saved.is_none() {
            // A founder that was stopped in its first second.
            lead(&group).await?;
            if group.read(|s| s.cluster().is_none()) {
                set_up(&group, &config.data_dir).await?;
            }
        }
        replay(&group, committed).await?;
        let admin_key = check_key(&group, &config.data_dir)?;
        let authorities = group.changes(Kind::Authorities);
        let identity = match (own_identity(&group, own), saved) {
            (Ok(identity), _) => identity,
            // What this disk holds ends before the cluster was set up.
            (Err(_), Some(saved)) => saved,
            (Err(error), None) => return Err(error),
        };
        identity.save(&config.data_dir).map_err(start)?;
        Ok(Entered {
            group: group.clone(),
            identity,
            authorities,
            admin_key,
            newcomer: false,
        })
    };
    match entered.await {
        Ok(entered) => Ok(entered),
        Err(error) => {
            group.close().await;
            Err(error)
        }
    }
}

/// Waits until the state has all that this disk knows to be certain, which needs nobody else. A
/// certificate of an older state might be of an authority that is trusted no more.
async fn replay(group: &Group, committed: Index) -> Result<(), CoordinatorError> {
    let mut applied = group.applied();
    let replayed = applied.wait_for(|at| *at >= committed);
    match timeout(limits::REPLAY_DEADLINE, replayed).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(CoordinatorError::Group(
            group
                .stopped()
                .await
                .unwrap_or_else(|| "see the log".into()),
        )),
        Err(_) => Err(CoordinatorError::Start(format!(
            "the replicated log was not replayed within {} s: start again, on a machine that is less \
             busy",
            limits::REPLAY_DEADLINE.as_secs()
        ))),
    }
}

fn begin(own: CoordinatorId, opened: Opened) -> Result<Group, CoordinatorError> {
    let Opened {
        wal,
        recovered,
        state,
        ..
    } = opened;
    Group::start(own, wal, recovered, state).map_err(|e| CoordinatorError::Start(e.to_string()))
}

/// Waits until this member, alone in its group, leads it.
async fn lead(group: &Group) -> Result<(), CoordinatorError> {
    let mut leadership = group.leadership();
    let led = leadership.wait_for(|l| l.is_me);
    match timeout(limits::PROPOSE_DEADLINE, led).await {
        Ok(Ok(_)) => Ok(()),
        _ => Err(CoordinatorError::Start(
            "the group has no leader: start its other coordinators".into(),
        )),
    }
}

/// Gives a new cluster its name, CA and admin key.
async fn set_up(group: &Group, data_dir: &Path) -> Result<String, CoordinatorError> {
    let path = data_dir.join(ADMIN_KEY_FILE);
    let key = match read_key(&path)? {
        Some(key) => key,
        None => {
            let key = new_admin_key()?;
            write_atomic(&path, key.as_bytes(), 0o600).map_err(|e| unwritable(&path, &e))?;
            key
        }
    };
    let name = new_cluster_name()?;
    let authority = ClusterAuthority::new(&name).map_err(start)?;
    let command = Command::Bootstrap {
        name: name.clone(),
        cluster: ClusterId(random()?),
        authority_pem: authority.to_pem(),
        admin_key_hash: Sha256::digest(key.as_bytes()).into(),
    };
    let terms = Terms {
        origin: Some(Origin {
            who: format!("coordinator {}", group.own()),
            from: "its first start".into(),
        }),
        ..Terms::default()
    };
    match group.propose_as(terms, command).await {
        Ok(Outcome::Done) => {
            tracing::info!(cluster = name, "a new cluster");
            Ok(key)
        }
        Ok(other) => Err(CoordinatorError::Start(format!(
            "the cluster cannot be set up: {other:?}"
        ))),
        Err(error) => Err(CoordinatorError::Start(error.to_string())),
    }
}

/// The admin key in the data folder, if it is there (a coordinator that joined has none).
fn check_key(group: &Group, data_dir: &Path) -> Result<Option<String>, CoordinatorError> {
    let path = data_dir.join(ADMIN_KEY_FILE);
    let Some(key) = read_key(&path)? else {
        return Ok(None);
    };
    let hash: [u8; 32] = Sha256::digest(key.as_bytes()).into();
    let known = group.read(|s| s.cluster().map(|c| c.admin_key_hash == hash));
    if known == Some(false) {
        return Err(CoordinatorError::Start(format!(
            "{} is of another cluster, and only its hash is stored: put the right file back, or \
             start with an empty --data-dir",
            path.display()
        )));
    }
    Ok(Some(key))
}

/// A new certificate at each start: it is then as far from its end as it can be.
pub(super) fn own_identity(
    group: &Group,
    own: CoordinatorId,
) -> Result<NodeIdentity, CoordinatorError> {
    let (signing, trusted) = group.read(|s| {
        let signing = s.signing_authority().map(|a| a.pem.clone());
        let trusted: Vec<String> = s.trusted_authorities().map(|a| a.pem.clone()).collect();
        (signing, trusted)
    });
    let signing = signing.ok_or_else(|| {
        CoordinatorError::Start("this replica does not hold the cluster's CA yet".into())
    })?;
    let authority = ClusterAuthority::from_pem(&signing).map_err(start)?;
    let others: Result<Vec<_>, _> = trusted
        .iter()
        .map(|pem| ClusterAuthority::from_pem(pem))
        .collect();
    let others = others.map_err(start)?;
    let bundle = others.iter().map(|a| a.certificate().clone()).collect();
    NodeIdentity::issue(&authority, NodeId::Coordinator(own))
        .and_then(|identity| identity.with_authorities(bundle))
        .map_err(start)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CoordinatorError> + Send + 'static,
) -> Result<T, CoordinatorError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| {
        CoordinatorError::Start("reading the data folder failed: see the log".into())
    })?
}

fn storage(error: StorageError) -> CoordinatorError {
    CoordinatorError::Start(error.to_string())
}

fn start(error: trireme_shared::identity::IdentityError) -> CoordinatorError {
    CoordinatorError::Start(error.to_string())
}

impl From<GroupError> for CoordinatorError {
    fn from(error: GroupError) -> Self {
        Self::Start(error.to_string())
    }
}
