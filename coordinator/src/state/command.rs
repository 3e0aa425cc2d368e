//! What can be asked of the state and what is answered. Both are stored and travel between
//! coordinators: enum variants are only ever appended (`codec` has the encoding).

use super::cluster::ClusterId;
use super::grants::{Answer, Ask};
use super::leases::{Amounts, Subject};
use super::prices::PriceList;
use super::requests::{Final, Progress};
use super::settings::{KeySettings, TenantSettings};
use super::tokens::TokenRole;
use super::v4::{PlanV4, SpecV4};
use super::webhooks::{Secret, Topics};
use trireme_shared::identity::NodeId;
use trireme_shared::ids::{
    BasisPoints, CoordinatorId, DeploymentId, Epoch, EventSeq, GatewayLife, KeyId, NanoUsd,
    PostingId, RequestId, TenantId, TokenRecordId, WorkerId,
};
use trireme_shared::plan::{DeploymentSpec, ReplicaPlan};
use trireme_shared::wire::control::Inventory;
use wincode::{SchemaRead, SchemaWrite};

/// Names one proposal; drawn at random by the proposer, and the same at each of its tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub struct ProposalId(pub [u8; 16]);

/// Who asked, for the audit log.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Origin {
    /// Such as `admin` or `token j3`.
    pub who: String,
    /// The address the request came from.
    pub from: String,
}

/// A command on its way to every member's state. All that varies (ids, time, random secrets' hashes)
/// is inside.
#[derive(Clone, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Proposal {
    pub id: ProposalId,
    /// `State::commands` of the proposer's replica when the id was first used.
    pub base: u64,
    /// Milliseconds since 1970, by the proposer's clock.
    pub at_ms: u64,
    pub origin: Option<Origin>,
    pub command: Command,
}

/// One change.
#[derive(Clone, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Command {
    /// The first command of a cluster; refused ever after. Seats coordinator 1.
    Bootstrap {
        name: String,
        cluster: ClusterId,
        /// Certificate and private key.
        authority_pem: String,
        admin_key_hash: [u8; 32],
    },
    /// A member says where it listens.
    PutCoordinator {
        id: CoordinatorId,
        http: String,
        control: String,
        version: String,
    },
    /// Uses a coordinator or learner token once and gives the joiner its number.
    JoinCoordinator {
        token: TokenRecordId,
        secret_hash: [u8; 32],
    },
    /// A learner shall vote.
    PromoteCoordinator {
        id: CoordinatorId,
    },
    /// The number is never given again, and its certificate is refused at once.
    RemoveCoordinator {
        id: CoordinatorId,
    },
    CreateToken {
        secret_hash: [u8; 32],
        role: TokenRole,
        /// Whose machines join with it.
        provider: Option<String>,
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
    },
    /// Like `RemoveCoordinator`.
    RemoveWorker {
        id: WorkerId,
    },
    /// The newest certificate of a node.
    PutCertificate {
        node: NodeId,
        /// Lower-case hex SHA-256 of the certificate (DER).
        fingerprint: String,
        /// Seconds since 1970.
        expires_at: u64,
    },
    PutInventory {
        worker: WorkerId,
        inventory: Inventory,
    },
    /// `PutDeployment` as releases before version 5 wrote it.
    PutDeploymentV4 {
        spec: SpecV4,
    },
    RemoveDeployment {
        id: DeploymentId,
    },
    /// `CommitPlan` as releases before version 5 wrote it.
    CommitPlanV4 {
        plan: Box<PlanV4>,
        previous: Option<Epoch>,
    },
    /// Makes the tenant of that name, or gives it other settings.
    PutTenant {
        name: String,
        settings: TenantSettings,
    },
    /// Makes a key for the tenant of that name, and the tenant if there is none.
    CreateKey {
        tenant: String,
        key_hash: [u8; 32],
        settings: KeySettings,
    },
    /// Gives a key other settings; its limits and its budget are its whole line's.
    UpdateKey {
        key: KeyId,
        settings: KeySettings,
    },
    RevokeKey {
        key: KeyId,
    },
    /// Makes a key that takes another one's place, with its settings.
    RotateKey {
        key: KeyId,
        key_hash: [u8; 32],
        /// Seconds for which both work.
        overlap: u64,
    },
    /// Prices of a model from a second on.
    PutPrice {
        /// The name it is asked for by.
        model: String,
        /// Seconds since 1970, after now; 0 is the next second.
        effective_from: u64,
        list: PriceList,
    },
    /// What the platform keeps of every charge from now on.
    SetFee {
        fee: BasisPoints,
    },
    /// Money that a tenant paid in; below zero, that is taken back from it.
    Credit {
        tenant: TenantId,
        amount: NanoUsd,
        reason: String,
    },
    /// Gives part of a request's charge back, at the platform's expense.
    Refund {
        request: RequestId,
        amount: NanoUsd,
        reason: String,
    },
    /// Part of a provider's earnings was paid to it.
    Payout {
        provider: String,
        amount: NanoUsd,
        reason: String,
    },
    /// A coordinator's gateway begins a life, and those it had before end.
    OpenGateway {
        coordinator: CoordinatorId,
    },
    /// What a gateway has to say; it also renews its life.
    Report {
        report: Report,
    },
    /// A gateway ends its life: what it lent goes back, its requests are settled as last told.
    CloseGateway {
        life: GatewayLife,
    },
    /// Ends a life that was not renewed in time.
    ReapGateway {
        life: GatewayLife,
    },
    /// A second CA that all nodes shall trust; it does not sign yet.
    AddAuthority {
        pem: String,
    },
    /// From now on certificates are signed by that CA (lower-case hex SHA-256 of its certificate).
    SignWith {
        fingerprint: String,
    },
    /// That CA is trusted no more. Never the one that signs.
    RetireAuthority {
        fingerprint: String,
    },
    /// An administrative or security act that changes nothing else: it is only written down.
    RecordAct {
        what: String,
        detail: String,
    },
    /// Gives a restored state a new identity: nobody of the old cluster is a member. Seats a
    /// coordinator with a new number. `admin_key_hash` `None` keeps the old admin key.
    Refound {
        cluster: ClusterId,
        name: String,
        authority_pem: String,
        admin_key_hash: Option<[u8; 32]>,
    },
    /// From this entry on the state keeps what version 3 does (`versions`). Done once; again changes
    /// nothing. Only the release that brought that version asks for it.
    Upgrade,
    /// From this entry on the state keeps what that version does, and those before it.
    UpgradeTo {
        version: u16,
    },
    /// Where a tenant shall be told of its account, in place of where it is.
    PutWebhook {
        tenant: TenantId,
        url: String,
        topics: Topics,
        /// Taken where there is no webhook yet, or another secret is wanted.
        secret: Secret,
        rotate: bool,
    },
    RemoveWebhook {
        tenant: TenantId,
    },
    /// Has a tenant told that it asked to be.
    TestWebhook {
        tenant: TenantId,
    },
    /// What came of a try to deliver an event.
    NoteDelivery {
        tenant: TenantId,
        event: EventSeq,
        /// Of the event, before this try.
        failures: u32,
        /// `None` where it was delivered; at most `limits::WEBHOOK_ERROR_BYTES_MAX`.
        error: Option<String>,
    },
    /// Creates or replaces the deployment of `spec.model.name`.
    PutDeployment {
        spec: DeploymentSpec,
    },
    /// Makes `plan` the plan of its replica, under a new epoch that `apply` gives. Refused where
    /// the replica's plan is no longer `previous`: someone planned in between.
    CommitPlan {
        plan: Box<ReplicaPlan>,
        previous: Option<Epoch>,
    },
}

/// What a gateway asks for, gives back and tells of its requests, `limits::REPORT_ITEMS_MAX` items at
/// most. What it tells may come twice and in any order; what it asks for and gives back counts each
/// time, so that a retry must be the same proposal.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Report {
    pub life: GatewayLife,
    pub asks: Vec<Ask>,
    pub returns: Vec<Return>,
    pub progress: Vec<Progress>,
    pub finals: Vec<Final>,
}

impl Report {
    /// Nothing but that it lives.
    pub fn new(life: GatewayLife) -> Self {
        Self {
            life,
            asks: Vec::new(),
            returns: Vec::new(),
            progress: Vec::new(),
            finals: Vec::new(),
        }
    }
}

/// What a gateway was lent and does not need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Return {
    pub subject: Subject,
    pub unneeded: Amounts,
}

/// What `apply` did.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Outcome {
    Done,
    Coordinator(CoordinatorId),
    Token(TokenRecordId),
    Worker(WorkerId),
    Deployment(DeploymentId),
    Planned(Epoch),
    Key {
        tenant: TenantId,
        key: KeyId,
    },
    Tenant(TenantId),
    Posting(PostingId),
    Gateway(GatewayLife),
    Reported {
        /// One for each ask, in their order.
        answers: Vec<Answer>,
    },
    Refused(Refusal),
    Webhook {
        /// The command's secret is the webhook's now.
        fresh: bool,
    },
    Event(EventSeq),
}

/// What a node's driver should look at again. Only that something changed: the state says what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The cluster's name or identity.
    Cluster,
    /// CAs that are trusted, or the one that signs.
    Authorities,
    /// Coordinators: who, where, or whether they should vote.
    Members,
    Workers,
    Tokens,
    Deployments,
    Plans,
    /// Tenants and their keys.
    Keys,
    /// Price lists and the platform's fee.
    Prices,
    /// Its connections must end at once.
    Removed(NodeId),
}

/// `apply`'s answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub outcome: Outcome,
    /// Empty where nothing changed.
    pub effects: Vec<Effect>,
}

/// Why a command changed nothing; the text tells the user what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, SchemaRead, SchemaWrite)]
pub enum Refusal {
    #[error(
        "this request is too old to be told from a new one: look whether it was carried out, and ask again if not"
    )]
    TooOld,
    #[error("this request was made by a coordinator with another history: ask again")]
    UnknownBase,
    #[error("this cluster is already set up")]
    AlreadyBootstrapped,
    #[error("this cluster is not set up yet")]
    NotBootstrapped,
    #[error("this is not a PEM file with a certificate and its key")]
    BadAuthority,
    #[error("this authority is trusted already")]
    AuthorityExists,
    #[error("no authority has the fingerprint {0}")]
    UnknownAuthority(String),
    #[error("two authorities are trusted already: retire the older one first")]
    TooManyAuthorities,
    #[error("this authority signs: let another one sign first")]
    AuthoritySigns,
    #[error("a restored cluster needs a new identity")]
    SameCluster,
    #[error("coordinator {0} is not a member: join it with a new token")]
    UnknownCoordinator(CoordinatorId),
    #[error("{0} was removed from the cluster: join it again with a new token")]
    Removed(NodeId),
    #[error("coordinator {0} is the last one that votes")]
    LastVoter(CoordinatorId),
    #[error("the group has as many coordinators as it can: remove one first")]
    GroupFull,
    // One text for an unknown id and a wrong secret, so that ids cannot be probed.
    #[error("this join token is not known here: create one with `cluster token create`")]
    UnknownToken,
    #[error("join token {0} has expired: create one with `cluster token create`")]
    TokenExpired(TokenRecordId),
    #[error("join token {0} was revoked: create one with `cluster token create`")]
    TokenRevoked(TokenRecordId),
    #[error("join token {0} has no uses left: create one with `cluster token create`")]
    TokenUsedUp(TokenRecordId),
    #[error("join token {0} is for another role: create one with `cluster token create`")]
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
    #[error("key {0} does not exist")]
    UnknownKey(KeyId),
    #[error("key {0} was revoked or has expired: create another")]
    KeyEnded(KeyId),
    #[error("tenant {0} does not exist")]
    UnknownTenant(TenantId),
    #[error("a limit, a weight, a budget or a credit is out of range")]
    LimitRange,
    #[error("a price cannot be below zero")]
    NegativePrice,
    #[error("prices can be set from a second to come only: those in force are not changed")]
    PriceInForce,
    #[error("the platform's fee is at most 10,000 basis points")]
    FeeRange,
    #[error("an amount of money is missing, or has the wrong sign")]
    NoAmount,
    #[error("say why the money is moved")]
    NoReason,
    #[error("so much is not there, or is lent to requests under way: try less")]
    Overdraft,
    #[error("request {0} is not known, or is kept no longer")]
    UnknownRequest(RequestId),
    #[error("no more can be refunded than was charged and is not refunded yet")]
    RefundTooLarge,
    #[error("gateway {0} has ended: open another")]
    GatewayGone(GatewayLife),
    #[error("gateway {0} lives")]
    GatewayAlive(GatewayLife),
    #[error("a report has more items than it may: send them in several")]
    ReportTooLong,
    #[error("an account's balance would be out of range")]
    BalanceRange,
    #[error("this release knows no version {0} of the state: run the newest one everywhere")]
    NewerVersion(u16),
    #[error("the books of an earlier release are being taken over: ask again in a moment")]
    OlderVersion,
    #[error("there is no webhook: set one first")]
    NoWebhook,
    #[error("as many tenants have webhooks as can: remove one first")]
    TooManyWebhooks,
    #[error("a webhook can be changed and tested so often only: ask again later")]
    TooManyActs { retry_after_ms: u64 },
}
