//! What can be asked of the state, what is answered, and how commands are written to the log.
//!
//! A log entry is a little-endian u16 version and the command in bincode's format. A version this
//! build does not know is refused, never guessed at. Enum variants are only ever appended.

use super::State;
use super::records::{PriceList, TokenRole, UsageId, UsageRecord};
use trireme_shared::ids::{
    CoordinatorId, DeploymentId, Epoch, KeyId, TenantId, TokenRecordId, WorkerId,
};
use trireme_shared::plan::{DeploymentSpec, ReplicaPlan};
use wincode::config::Configuration;
use wincode::{SchemaRead, SchemaWrite};

/// Version of the encoding below.
const COMMAND_VERSION: u16 = 1;
/// Version of the snapshot's encoding.
const STATE_VERSION: u16 = 1;

/// One change. All that varies (time, random secrets' hashes) is inside.
#[derive(Clone, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Command {
    /// The first command of a cluster; refused ever after.
    Bootstrap {
        name: String,
        ca_pem: String,
        admin_key_hash: [u8; 32],
    },
    /// A coordinator says where it listens.
    PutCoordinator {
        id: CoordinatorId,
        http: String,
        control: String,
    },
    CreateToken {
        secret_hash: [u8; 32],
        role: TokenRole,
        uses: u32,
        /// Seconds since 1970.
        expires_at: u64,
    },
    RevokeToken {
        id: TokenRecordId,
    },
    /// Uses a worker token once and gives the worker its number.
    JoinWorker {
        token: TokenRecordId,
        secret_hash: [u8; 32],
        /// Seconds since 1970, of the coordinator that was asked.
        now: u64,
    },
    /// The certificate that was signed for a worker.
    PutCertificate {
        worker: WorkerId,
        fingerprint: String,
    },
    /// Creates or replaces the deployment of `spec.model.name`.
    PutDeployment {
        spec: DeploymentSpec,
        price: PriceList,
        now: u64,
    },
    /// Makes `plan` the plan of its replica, under a new epoch that `apply` gives. Refused where
    /// the replica's plan is no longer `previous`: someone planned in between.
    CommitPlan {
        plan: Box<ReplicaPlan>,
        previous: Option<Epoch>,
    },
    /// Makes a key for the tenant of that name, and the tenant if there is none.
    CreateKey {
        tenant: String,
        key_hash: [u8; 32],
        now: u64,
    },
    RecordUsage {
        id: UsageId,
        usage: UsageRecord,
    },
}

/// What `apply` did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Token(TokenRecordId),
    Worker(WorkerId),
    Deployment(DeploymentId),
    Planned(Epoch),
    Key { tenant: TenantId, key: KeyId },
    Refused(Refusal),
}

/// Why a command changed nothing; the text tells the user what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("this cluster is already set up")]
    AlreadyBootstrapped,
    // One text for an unknown id and a wrong secret, so that ids cannot be probed.
    #[error("this join token is not known here: create one with `cluster token create`")]
    UnknownToken,
    #[error("join token {0} has expired: create one with `cluster token create`")]
    TokenExpired(TokenRecordId),
    #[error("join token {0} was revoked: create one with `cluster token create`")]
    TokenRevoked(TokenRecordId),
    #[error("join token {0} has no uses left: create one with `cluster token create`")]
    TokenUsedUp(TokenRecordId),
    #[error("join token {0} is not for workers: create one with `cluster token create`")]
    TokenRole(TokenRecordId),
    #[error("a join token needs at least one use")]
    NoUses,
    #[error("worker {0} never joined: join it again with a new token")]
    UnknownWorker(WorkerId),
    #[error("deployment {0} does not exist")]
    UnknownDeployment(DeploymentId),
    #[error("the plan is outdated: its replica is at epoch {current:?} by now")]
    StalePlan { current: Option<Epoch> },
    #[error("the plan does not fit its deployment: {0}")]
    PlanMismatch(String),
    #[error("this key exists already")]
    KeyExists,
    #[error("key {0} does not belong to that tenant")]
    UnknownKey(KeyId),
}

/// Why bytes from disk are not a command or a state.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("it cannot be encoded: {0}")]
    Encode(String),
    #[error("it is damaged: {0}")]
    Damaged(String),
    #[error("it was written by another version (format {found}, this build reads {known})")]
    Version { found: u16, known: u16 },
}

/// Snapshots grow with the cluster; their bytes come from our own disk, not from a peer.
const STATE_CONFIG: Configuration<true, { 1 << 30 }> =
    Configuration::default().with_preallocation_size_limit::<{ 1 << 30 }>();

pub fn encode(command: &Command) -> Result<Vec<u8>, CodecError> {
    let mut bytes = COMMAND_VERSION.to_le_bytes().to_vec();
    let body = wincode::serialize(command).map_err(|e| CodecError::Encode(e.to_string()))?;
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

pub fn decode(bytes: &[u8]) -> Result<Command, CodecError> {
    let body = body_of(bytes, COMMAND_VERSION)?;
    wincode::deserialize_exact(body).map_err(|e| CodecError::Damaged(e.to_string()))
}

pub(super) fn encode_state(state: &State) -> Result<Vec<u8>, CodecError> {
    let mut bytes = STATE_VERSION.to_le_bytes().to_vec();
    let body = wincode::config::serialize(state, STATE_CONFIG)
        .map_err(|e| CodecError::Encode(e.to_string()))?;
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

pub(super) fn decode_state(bytes: &[u8]) -> Result<State, CodecError> {
    let body = body_of(bytes, STATE_VERSION)?;
    wincode::config::deserialize_exact(body, STATE_CONFIG)
        .map_err(|e| CodecError::Damaged(e.to_string()))
}

fn body_of(bytes: &[u8], known: u16) -> Result<&[u8], CodecError> {
    let Some((version, body)) = bytes.split_first_chunk::<2>() else {
        return Err(CodecError::Damaged("it is shorter than its header".into()));
    };
    let found = u16::from_le_bytes(*version);
    if found != known {
        return Err(CodecError::Version { found, known });
    }
    Ok(body)
}
