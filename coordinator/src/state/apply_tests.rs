//! What tests of the state build histories with (`Member`), and what holds for all commands: refusals
//! change nothing, effects say what to look at.

use super::*;
use crate::billing::DEFAULT_PRICES;
use crate::state::{ClusterId, Origin, Principal, ProposalId, TokenRole, UsageRecord};
use trireme_shared::ids::{
    DeploymentId, KeyId, NanoUsd, Rank, Replica, RequestId, Stage, TenantId, Tokens,
};
use trireme_shared::plan::{DeploymentSpec, LinkPolicy, ModelRef};
use trireme_shared::wire::control::Inventory;

/// One member's state and whoever proposes to it, second by second.
#[derive(Clone, Default)]
pub(crate) struct Member {
    pub state: State,
    /// Makes the ids of its proposals.
    pub asked: u64,
    /// Seconds since 1970.
    pub now: u64,
    pub origin: Option<Origin>,
}

impl Member {
    pub fn proposal(&mut self, command: Command) -> Proposal {
        self.asked += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.asked.to_le_bytes());
        Proposal {
            id: ProposalId(id),
            base: self.state.commands(),
            at_ms: self.now * 1_000 + 999,
            origin: self.origin.clone(),
            command,
        }
    }

    pub fn apply(&mut self, command: Command) -> Applied {
        let proposal = self.proposal(command);
        apply(&mut self.state, &proposal)
    }

    pub fn ask(&mut self, command: Command) -> Outcome {
        self.apply(command).outcome
    }

    pub fn refused(&mut self, command: Command) -> Refusal {
        match self.ask(command) {
            Outcome::Refused(why) => why,
            other => panic!("not refused: {other:?}"),
        }
    }
}

pub(crate) fn hash(byte: u8) -> [u8; 32] {
    [byte; 32]
}

/// What passes for a CA where nobody signs with it.
pub(crate) fn pem(n: u8) -> String {
    let letter = char::from(b'A' + n);
    format!("-----BEGIN CERTIFICATE-----\nAAA{letter}\n-----END CERTIFICATE-----\n")
}

pub(crate) fn fingerprint(n: u8) -> String {
    crate::state::cluster::fingerprint(&pem(n)).unwrap()
}

pub(crate) fn spec(name: &str, tp: u16, pp: u16, replicas: u16) -> DeploymentSpec {
    DeploymentSpec {
        model: ModelRef {
            name: name.into(),
            source: format!("{name}.gguf"),
            sha256: None,
        },
        tensor_parallel: tp,
        pipeline_parallel: pp,
        replicas,
        link: LinkPolicy::Auto,
    }
}

pub(crate) fn put(name: &str, replicas: u16) -> Command {
    Command::PutDeployment {
        spec: spec(name, 1, 1, replicas),
        price: DEFAULT_PRICES,
    }
}

/// A plan of the shape `commit_plan` checks; the share is of no model in particular.
fn plan(deployment: DeploymentId, name: &str, replica: u16) -> ReplicaPlan {
    use trireme_shared::model::{RankShare, Span};
    use trireme_shared::plan::RankPlacement;
    ReplicaPlan {
        deployment,
        replica: Replica(replica),
        epoch: Epoch(0),
        model: spec(name, 1, 1, 1).model,
        tensor_parallel: 1,
        pipeline_parallel: 1,
        link: LinkPolicy::Auto,
        ranks: vec![RankPlacement {
            share: RankShare {
                stage: Stage(0),
                rank: Rank(0),
                stages: 1,
                ranks: 1,
                layers: Span::new(0, 2),
                kv_heads: Span::new(0, 1),
                ffn: Span::new(0, 64),
                vocab: Span::new(0, 256),
            },
            worker: WorkerId(1),
            address: "127.0.0.1:9".into(),
            host: "h".into(),
            weight_bytes: 1,
        }],
        kv_pages: 4,
        context: 64,
        nonce: [3; 16],
    }
}

pub(crate) fn commit(
    deployment: u32,
    name: &str,
    replica: u16,
    previous: Option<Epoch>,
) -> Command {
    Command::CommitPlan {
        plan: Box::new(plan(DeploymentId(deployment), name, replica)),
        previous,
    }
}

pub(crate) fn token(secret: u8, role: TokenRole, uses: u32) -> Command {
    Command::CreateToken {
        secret_hash: hash(secret),
        role,
        provider: Some("hosts".into()),
        uses,
        expires_at: 100,
    }
}

pub(crate) fn join(id: u32, secret: u8) -> Command {
    Command::JoinWorker {
        token: TokenRecordId(id),
        secret_hash: hash(secret),
    }
}

pub(crate) fn join_group(id: u32, secret: u8) -> Command {
    Command::JoinCoordinator {
        token: TokenRecordId(id),
        secret_hash: hash(secret),
    }
}

pub(crate) fn bootstrap_command() -> Command {
    Command::Bootstrap {
        name: "c".into(),
        cluster: ClusterId([7; 16]),
        authority_pem: pem(0),
        admin_key_hash: hash(200),
    }
}

pub(crate) fn key(tenant: &str, byte: u8) -> Command {
    Command::CreateKey {
        tenant: tenant.into(),
        key_hash: hash(byte),
    }
}

pub(crate) fn usage(key: u32) -> Command {
    let usage = UsageRecord {
        request: RequestId::parse("same-for-all").unwrap(),
        tenant: TenantId(1),
        key: KeyId(key),
        deployment: DeploymentId(1),
        prompt: Tokens(10),
        cached: Tokens(4),
        completion: Tokens(5),
        cost: NanoUsd(600),
    };
    Command::RecordUsage { usage }
}

pub(crate) fn inventory(worker: u32) -> Command {
    Command::PutInventory {
        worker: WorkerId(worker),
        inventory: Inventory {
            host: "h".into(),
            hostname: "n".into(),
            pid: 1,
            threads: 2,
            memory_bytes: 3,
            isa: "avx2".into(),
            data_port: 4,
            advertise: None,
            version: "0".into(),
        },
    }
}

pub(crate) fn certificate(node: NodeId) -> Command {
    Command::PutCertificate {
        node,
        fingerprint: "ab".repeat(32),
        expires_at: 9_000,
    }
}

/// A state with rows in every area.
pub(crate) fn filled() -> Member {
    let origin = Origin {
        who: "admin".into(),
        from: "127.0.0.1:1".into(),
    };
    let mut member = Member {
        origin: Some(origin),
        ..Member::default()
    };
    for command in [
        bootstrap_command(),
        Command::PutCoordinator {
            id: CoordinatorId(1),
            http: "http://127.0.0.1:8000".into(),
            control: "127.0.0.1:7000".into(),
            version: "0.1.0".into(),
        },
        token(1, TokenRole::Worker, 3),
        token(2, TokenRole::Coordinator, 1),
        token(3, TokenRole::Learner, 1),
        join(1, 1),
        join(1, 1),
        join_group(2, 2),
        join_group(3, 3),
        Command::RemoveWorker { id: WorkerId(2) },
        Command::RevokeToken {
            id: TokenRecordId(3),
        },
        certificate(NodeId::Worker(WorkerId(1))),
        certificate(NodeId::Coordinator(CoordinatorId(2))),
        inventory(1),
        put("a", 2),
        put("b", 1),
        commit(1, "a", 0, None),
        commit(1, "a", 1, None),
        key("acme", 10),
        key("acme", 11),
        key("zeta", 12),
        usage(1),
        usage(1),
        usage(2),
        Command::AddAuthority { pem: pem(1) },
        Command::RecordAct {
            what: "backup".into(),
            detail: "to a file".into(),
        },
    ] {
        let outcome = member.ask(command);
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    }
    member.state.check().unwrap();
    member
}

#[test]
fn keys_belong_to_tenants_and_authenticate_by_hash() {
    let mut member = Member::default();
    member.ask(bootstrap_command());
    let made = member.ask(key("acme", 10));
    let (tenant, id) = (TenantId(1), KeyId(1));
    assert_eq!(made, Outcome::Key { tenant, key: id });
    assert_eq!(member.refused(key("acme", 10)), Refusal::KeyExists);
    member.ask(key("acme", 11));
    assert_eq!(member.state.tenants().count(), 1);
    let name = "acme".to_owned();
    let principal = Principal::Tenant {
        tenant,
        name,
        key: id,
    };
    let state = &member.state;
    assert_eq!(state.authenticate(&hash(10)), Some(principal));
    assert_eq!(state.authenticate(&hash(200)), Some(Principal::Admin));
    assert_eq!(state.authenticate(&hash(12)), None);
    let again = member.refused(bootstrap_command());
    assert_eq!(again, Refusal::AlreadyBootstrapped);
}

/// The state less what may change at a refusal: the remembered outcome, and the audit record of an
/// act that somebody asked for.
fn without_memory(state: &State) -> [u8; 32] {
    let mut state = state.clone();
    state.proposals = Default::default();
    state.audit = Default::default();
    state.digest().unwrap()
}

#[test]
fn a_refusal_changes_nothing_but_the_memory_of_it() {
    let mut member = filled();
    member.now = 50;
    let gone = WorkerId(2);
    let refused = [
        bootstrap_command(),
        token(1, TokenRole::Worker, 0),
        join(1, 9),
        join(2, 2),
        join_group(2, 2),
        join_group(1, 1),
        join_group(3, 3),
        Command::RevokeToken {
            id: TokenRecordId(99),
        },
        Command::PromoteCoordinator {
            id: CoordinatorId(9),
        },
        Command::RemoveWorker { id: gone },
        certificate(NodeId::Worker(gone)),
        inventory(2),
        Command::RemoveDeployment {
            id: DeploymentId(9),
        },
        commit(1, "a", 0, None),
        commit(1, "a", 9, None),
        commit(9, "a", 0, None),
        key("new tenant", 10),
        usage(9),
        Command::AddAuthority { pem: pem(2) },
        Command::AddAuthority { pem: String::new() },
        Command::SignWith {
            fingerprint: "no".into(),
        },
        Command::RetireAuthority {
            fingerprint: fingerprint(0),
        },
        Command::Refound {
            cluster: ClusterId([8; 16]),
            name: "x".into(),
            authority_pem: "no".into(),
            admin_key_hash: None,
        },
    ];
    for (n, command) in refused.into_iter().enumerate() {
        let joins = matches!(
            command,
            Command::JoinWorker { .. } | Command::JoinCoordinator { .. }
        );
        member.origin = None;
        let (before, head) = (member.state.clone(), member.state.audit_head());
        let applied = member.apply(command);
        assert!(
            matches!(applied.outcome, Outcome::Refused(_)),
            "command {n}"
        );
        assert_eq!(applied.effects, []);
        assert_eq!(
            without_memory(&member.state),
            without_memory(&before),
            "command {n}"
        );
        assert_eq!(member.state.commands(), before.commands() + 1);
        // Of those that nobody is named for, joins are written down.
        assert_eq!(member.state.audit_head() != head, joins, "command {n}");
    }
    member.state.check().unwrap();
}

#[test]
fn effects_say_what_to_look_at() {
    let mut member = Member::default();
    let founded = [Effect::Cluster, Effect::Authorities, Effect::Members];
    assert_eq!(member.apply(bootstrap_command()).effects, founded);
    let made = member.apply(token(1, TokenRole::Worker, 1));
    assert_eq!(made.effects, [Effect::Tokens]);
    let joined = member.apply(join(1, 1));
    assert_eq!(joined.effects, [Effect::Workers, Effect::Tokens]);
    assert_eq!(member.apply(inventory(1)).effects, [Effect::Workers]);
    assert_eq!(member.apply(put("a", 1)).effects, [Effect::Deployments]);
    assert_eq!(
        member.apply(commit(1, "a", 0, None)).effects,
        [Effect::Plans]
    );
    assert_eq!(member.apply(key("acme", 1)).effects, [Effect::Keys]);
    assert_eq!(member.apply(usage(1)).effects, []);
}
