//! What clients ask, and what an answer to it must look like.
//!
//! Every command is told from every other: keys and tokens by their hash, plans by their nonce
//! (`charges` has those about money). What an answer must be exactly is the oracle's to say; here is what it can be at all,
//! without a look at the state machine.

use crate::chance::Chance;
use crate::charges::Charges;
use trireme_coordinator::state::{
    Command, KeySettings, Origin, Outcome, Proposal, ProposalId, Refusal, State, TokenRole,
};
use trireme_shared::ids::{
    DeploymentId, Epoch, KeyId, Rank, Replica, Stage, TenantId, TokenRecordId, WorkerId,
};
use trireme_shared::model::{Precision, RankShare, Span};
use trireme_shared::plan::{DeploymentSpec, LinkPolicy, ModelRef, RankPlacement, ReplicaPlan};

/// 2026, when the simulated clocks start, milliseconds since 1970.
pub const START_MS: u64 = 1_780_000_000_000;

const MODELS: [&str; 3] = ["alpha", "beta", "gamma"];
const TENANTS: [&str; 4] = ["acme", "bell", "cray", "dune"];

/// What one client knows from its own answers.
#[derive(Default)]
pub struct Knowledge {
    keys: Vec<(TenantId, KeyId)>,
    tokens: Vec<TokenRecordId>,
    charges: Charges,
}

impl Knowledge {
    /// The next command. `state` is the replica of the node that is asked: it may be behind.
    pub fn next(&mut self, chance: &mut Chance, state: &State) -> Command {
        let deployments: Vec<DeploymentId> = state.deployments().map(|d| d.id).collect();
        let deployment = chance.pick(&deployments);
        match chance.below(100) {
            0..=19 => Command::CreateKey {
                tenant: TENANTS[chance.below(4) as usize].into(),
                key_hash: chance.bytes(),
                settings: KeySettings::default(),
            },
            20..=29 => Command::CreateToken {
                secret_hash: chance.bytes(),
                role: TokenRole::Worker,
                provider: None,
                uses: 1 + chance.below(3) as u32,
                expires_at: u64::MAX,
            },
            30..=34 => match chance.pick(&self.tokens) {
                Some(id) => Command::RevokeToken { id },
                None => act(chance),
            },
            35..=39 => put_deployment(chance),
            40..=42 => match deployment {
                Some(id) => Command::RemoveDeployment { id },
                None => put_deployment(chance),
            },
            43..=62 => match deployment {
                Some(id) => commit_plan(chance, state, id),
                None => put_deployment(chance),
            },
            63..=92 => {
                let command = self.charges.next(chance, state, &self.keys, &TENANTS);
                command.unwrap_or_else(|| act(chance))
            }
            _ => act(chance),
        }
    }

    pub fn learn(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Key { tenant, key } => self.keys.push((*tenant, *key)),
            Outcome::Token(id) => self.tokens.push(*id),
            _ => {}
        }
    }
}

fn act(chance: &mut Chance) -> Command {
    Command::RecordAct {
        what: "look".into(),
        detail: format!("{:x}", chance.next()),
    }
}

fn spec(name: &str, replicas: u16) -> DeploymentSpec {
    DeploymentSpec {
        model: ModelRef {
            name: name.into(),
            source: format!("{name}.gguf"),
            sha256: None,
        },
        tensor_parallel: 1,
        pipeline_parallel: 1,
        replicas,
        link: LinkPolicy::Auto,
        precision: Precision::default(),
    }
}

fn put_deployment(chance: &mut Chance) -> Command {
    let replicas = 1 + chance.below(2) as u16;
    Command::PutDeployment {
        spec: spec(MODELS[chance.below(3) as usize], replicas),
    }
}

fn commit_plan(chance: &mut Chance, state: &State, id: DeploymentId) -> Command {
    let name = state
        .deployment(id)
        .map_or_else(|| "alpha".to_owned(), |d| d.spec.model.name.clone());
    let replica = Replica(chance.below(2) as u16);
    let plan = ReplicaPlan {
        deployment: id,
        replica,
        epoch: Epoch(0),
        model: spec(&name, 1).model,
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
        nonce: chance.bytes(),
    };
    Command::CommitPlan {
        plan: Box::new(plan),
        previous: state.plan(id, replica).map(|p| p.epoch),
    }
}

/// A new proposal. `clock_ms` is what the node's wall clock is off by.
pub fn propose(
    chance: &mut Chance,
    command: Command,
    state: &State,
    now_ms: u64,
    clock_ms: i64,
) -> Proposal {
    let audited = chance.happens(500);
    Proposal {
        id: ProposalId(chance.bytes()),
        base: state.commands(),
        at_ms: (START_MS + now_ms).saturating_add_signed(clock_ms),
        origin: audited.then(|| Origin {
            who: "admin".into(),
            from: "192.0.2.1:443".into(),
        }),
        command,
    }
}

/// Whether the outcome can be that of the command at all.
pub fn fits(command: &Command, outcome: &Outcome) -> bool {
    use Outcome as O;
    match (command, outcome) {
        // Every key's and every authority's hash is drawn anew.
        (Command::CreateKey { .. }, O::Refused(why)) => {
            matches!(why, Refusal::TooOld | Refusal::UnknownBase)
        }
        (_, O::Refused(_)) => true,
        (Command::CreateKey { .. }, O::Key { .. })
        | (Command::CreateToken { .. }, O::Token(_))
        | (Command::JoinCoordinator { .. }, O::Coordinator(_))
        | (Command::JoinWorker { .. }, O::Worker(_))
        | (Command::PutDeployment { .. }, O::Deployment(_))
        | (Command::CommitPlan { .. }, O::Planned(_))
        | (Command::RotateKey { .. }, O::Key { .. })
        | (Command::PutTenant { .. }, O::Tenant(_))
        | (Command::OpenGateway { .. }, O::Gateway(_))
        | (Command::PutWebhook { .. }, O::Webhook { .. })
        | (Command::TestWebhook { .. }, O::Event(_)) => true,
        (
            Command::Credit { .. } | Command::Refund { .. } | Command::Payout { .. },
            O::Posting(_),
        ) => true,
        (Command::Report { report }, O::Reported { answers }) => answers.len() == report.asks.len(),
        (
            Command::CreateKey { .. }
            | Command::CreateToken { .. }
            | Command::JoinCoordinator { .. }
            | Command::JoinWorker { .. }
            | Command::PutDeployment { .. }
            | Command::CommitPlan { .. }
            | Command::RotateKey { .. }
            | Command::PutTenant { .. }
            | Command::OpenGateway { .. }
            | Command::Credit { .. }
            | Command::Refund { .. }
            | Command::Payout { .. }
            | Command::Report { .. }
            | Command::PutWebhook { .. }
            | Command::TestWebhook { .. },
            _,
        ) => false,
        (_, outcome) => *outcome == O::Done,
    }
}

/// For a trace.
pub fn name(command: &Command) -> &'static str {
    match command {
        Command::CreateKey { .. } => "CreateKey",
        Command::CreateToken { .. } => "CreateToken",
        Command::RevokeToken { .. } => "RevokeToken",
        Command::PutDeployment { .. } => "PutDeployment",
        Command::RemoveDeployment { .. } => "RemoveDeployment",
        Command::CommitPlan { .. } => "CommitPlan",
        Command::PutTenant { .. } => "PutTenant",
        Command::UpdateKey { .. } => "UpdateKey",
        Command::RotateKey { .. } => "RotateKey",
        Command::PutPrice { .. } => "PutPrice",
        Command::SetFee { .. } => "SetFee",
        Command::Credit { .. } => "Credit",
        Command::Refund { .. } => "Refund",
        Command::Payout { .. } => "Payout",
        Command::OpenGateway { .. } => "OpenGateway",
        Command::Report { .. } => "Report",
        Command::CloseGateway { .. } => "CloseGateway",
        Command::ReapGateway { .. } => "ReapGateway",
        Command::PutWebhook { .. } => "PutWebhook",
        Command::RemoveWebhook { .. } => "RemoveWebhook",
        Command::TestWebhook { .. } => "TestWebhook",
        Command::NoteDelivery { .. } => "NoteDelivery",
        Command::RecordAct { .. } => "RecordAct",
        Command::JoinCoordinator { .. } => "JoinCoordinator",
        Command::PutCoordinator { .. } => "PutCoordinator",
        Command::PromoteCoordinator { .. } => "PromoteCoordinator",
        Command::RemoveCoordinator { .. } => "RemoveCoordinator",
        _ => "another command",
    }
}
