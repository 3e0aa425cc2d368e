//! What tests of the state build histories with (`Member`), and what holds for all commands: refusals
//! change nothing, effects say what to look at.

use super::*;
use crate::state::{
    Amounts, Ask, ClusterId, Counts, Ended, Final, KeyFault, KeySettings, Limits, Origin,
    PriceList, Principal, Progress, ProposalId, Report, Return, Subject, TenantSettings, TokenRole,
    Work,
};
use trireme_shared::ids::{
    BasisPoints, DeploymentId, GatewayLife, KeyId, NanoUsd, Rank, Replica, RequestId, Stage,
    TenantId, Tokens,
};
use trireme_shared::limits;
use trireme_shared::model::Precision;
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
        precision: Precision::default(),
    }
}

pub(crate) fn put(name: &str, replicas: u16) -> Command {
    Command::PutDeployment {
        spec: spec(name, 1, 1, replicas),
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
        precision: Precision::default(),
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
        settings: KeySettings::default(),
    }
}

pub(crate) fn credit(tenant: u32, amount: i64) -> Command {
    Command::Credit {
        tenant: TenantId(tenant),
        amount: NanoUsd(amount),
        reason: "paid".into(),
    }
}

pub(crate) fn open_gateway(coordinator: u32) -> Command {
    Command::OpenGateway {
        coordinator: CoordinatorId(coordinator),
    }
}

/// Of request `n` of tenant 1's key 1, for which 10 prompt tokens, 4 of them cached, and 5 more were
/// delivered: 440 nano-dollars by the default prices.
pub(crate) fn told(n: u64) -> Progress {
    Progress {
        request: RequestId::parse(&format!("req_{n}")).unwrap(),
        caller_id: None,
        tenant: TenantId(1),
        key: KeyId(1),
        model: "a".into(),
        began_at_ms: 1_000,
        idempotency: None,
        counts: Counts::new(10, 4, 5),
        work: vec![Work {
            provider: Some("hosts".into()),
            units: 30,
        }],
    }
}

pub(crate) fn ended(progress: Progress) -> Final {
    let ended = Ended::Finished;
    Final { progress, ended }
}

pub(crate) fn report(life: u64, with: impl FnOnce(&mut Report)) -> Command {
    let mut report = Report::new(GatewayLife(life));
    with(&mut report);
    Command::Report { report }
}

/// Settles request `n`.
pub(crate) fn usage(life: u64, n: u64) -> Command {
    report(life, |r| r.finals.push(ended(told(n))))
}

/// Money, requests, tokens, slots.
pub(crate) fn amounts(money: i64, requests: u64, tokens: u64, slots: u64) -> Amounts {
    Amounts {
        money: NanoUsd(money),
        requests,
        tokens: Tokens(tokens),
        slots,
    }
}

pub(crate) fn ask(subject: Subject, least: Amounts, most: Amounts) -> Ask {
    Ask {
        subject,
        least,
        most,
    }
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

pub(crate) fn limited() -> TenantSettings {
    TenantSettings {
        monthly_budget: Some(NanoUsd(1_000_000_000)),
        weight: 3,
        limits: Limits {
            requests_per_minute: Some(60),
            tokens_per_minute: Some(Tokens(6_000)),
            tokens_per_day: Some(Tokens(1_000_000)),
            concurrency: Some(10),
        },
        ..TenantSettings::default()
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
        Command::PutTenant {
            name: "acme".into(),
            settings: limited(),
        },
        Command::RotateKey {
            key: KeyId(2),
            key_hash: hash(13),
            overlap: 60,
        },
        Command::UpdateKey {
            key: KeyId(4),
            settings: KeySettings {
                name: "laptop".into(),
                models: Some(vec!["a".into(), "b".into()]),
                ..KeySettings::default()
            },
        },
        Command::RevokeKey { key: KeyId(3) },
        Command::PutPrice {
            model: "b".into(),
            effective_from: 0,
            list: PriceList {
                minimum: NanoUsd(7),
                ..crate::state::DEFAULT_PRICES
            },
        },
        Command::SetFee {
            fee: BasisPoints(2_500),
        },
        credit(1, 1_000_000),
        open_gateway(1),
        usage(1, 1),
        usage(1, 2),
        report(1, |r| {
            let mut last = told(3);
            last.idempotency = Some(hash(77));
            last.caller_id = RequestId::parse("mine");
            r.finals.push(ended(last));
            r.progress.push(told(4));
            let some = amounts(5_000, 3, 100, 2);
            r.asks.push(ask(Subject::Tenant(TenantId(1)), some, some));
        }),
        report(1, |r| {
            r.returns.push(Return {
                subject: Subject::Tenant(TenantId(1)),
                unneeded: amounts(1_000, 1, 10, 1),
            });
        }),
        Command::Refund {
            request: RequestId::parse("req_2").unwrap(),
            amount: NanoUsd(40),
            reason: "slow".into(),
        },
        Command::Payout {
            provider: "hosts".into(),
            amount: NanoUsd(100),
            reason: "November".into(),
        },
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
    assert_eq!(state.authenticate(&hash(10), 0), Ok(principal));
    assert_eq!(state.authenticate(&hash(200), 0), Ok(Principal::Admin));
    assert_eq!(state.authenticate(&hash(12), 0), Err(KeyFault::Unknown));
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
        Command::PutTenant {
            name: "acme".into(),
            settings: TenantSettings {
                weight: 0,
                ..limited()
            },
        },
        Command::UpdateKey {
            key: KeyId(9),
            settings: KeySettings::default(),
        },
        Command::RevokeKey { key: KeyId(9) },
        Command::RotateKey {
            key: KeyId(3),
            key_hash: hash(99),
            overlap: 1,
        },
        Command::RotateKey {
            key: KeyId(1),
            key_hash: hash(10),
            overlap: 1,
        },
        Command::PutPrice {
            model: "a".into(),
            effective_from: 50,
            list: crate::state::DEFAULT_PRICES,
        },
        Command::SetFee {
            fee: BasisPoints(10_001),
        },
        credit(9, 1),
        credit(1, 0),
        credit(1, i64::MIN),
        credit(1, -2_000_000_000_000_000),
        credit(1, i64::MAX),
        Command::Credit {
            tenant: TenantId(1),
            amount: NanoUsd(1),
            reason: String::new(),
        },
        Command::Refund {
            request: RequestId::parse("req_2").unwrap(),
            amount: NanoUsd(401),
            reason: "slow".into(),
        },
        Command::Refund {
            request: RequestId::parse("req_4").unwrap(),
            amount: NanoUsd(1),
            reason: "not settled".into(),
        },
        Command::Payout {
            provider: "hosts".into(),
            amount: NanoUsd(1_000_000),
            reason: "more than it has".into(),
        },
        open_gateway(9),
        usage(9, 9),
        report(1, |r| {
            r.progress = vec![told(5); limits::REPORT_ITEMS_MAX + 1];
        }),
        Command::CloseGateway {
            life: GatewayLife(9),
        },
        Command::ReapGateway {
            life: GatewayLife(9),
        },
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
    let priced = Command::SetFee {
        fee: BasisPoints(1),
    };
    assert_eq!(member.apply(priced).effects, [Effect::Prices]);
    assert_eq!(member.apply(open_gateway(1)).effects, []);
    assert_eq!(member.apply(usage(1, 1)).effects, []);
}
