//! Histories of commands, then what the state holds: refusals change nothing, epochs grow, usage
//! counts once, and equal histories make equal bytes.

use super::*;
use crate::billing::DEFAULT_PRICES;
use crate::state::command::{CodecError, decode, decode_state, encode, encode_state};
use trireme_shared::plan::{LinkPolicy, ModelRef};

fn hash(byte: u8) -> [u8; 32] {
    [byte; 32]
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

fn put(name: &str, replicas: u16) -> Command {
    Command::PutDeployment {
        spec: spec(name, 1, 1, replicas),
        price: DEFAULT_PRICES,
        now: 7,
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

fn commit(plan: ReplicaPlan, previous: Option<Epoch>) -> Command {
    Command::CommitPlan {
        plan: Box::new(plan),
        previous,
    }
}

fn join(id: u32, secret: u8, now: u64) -> Command {
    Command::JoinWorker {
        token: TokenRecordId(id),
        secret_hash: hash(secret),
        now,
    }
}

fn refusal(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Refused(why) => why,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_token_lets_in_exactly_as_many_as_it_says() {
    let mut state = State::default();
    let create = Command::CreateToken {
        secret_hash: hash(1),
        role: TokenRole::Worker,
        uses: 2,
        expires_at: 100,
    };
    let id = TokenRecordId(1);
    assert_eq!(apply(&mut state, &create), Outcome::Token(id));
    assert_eq!(
        refusal(apply(&mut state, &join(9, 1, 5))),
        Refusal::UnknownToken
    );
    assert_eq!(
        refusal(apply(&mut state, &join(1, 2, 5))),
        Refusal::UnknownToken
    );
    assert_eq!(
        refusal(apply(&mut state, &join(1, 1, 100))),
        Refusal::TokenExpired(id)
    );
    assert_eq!(
        apply(&mut state, &join(1, 1, 99)),
        Outcome::Worker(WorkerId(1))
    );
    assert_eq!(
        apply(&mut state, &join(1, 1, 99)),
        Outcome::Worker(WorkerId(2))
    );
    assert_eq!(
        refusal(apply(&mut state, &join(1, 1, 99))),
        Refusal::TokenUsedUp(id)
    );
    apply(&mut state, &create);
    apply(
        &mut state,
        &Command::RevokeToken {
            id: TokenRecordId(2),
        },
    );
    let why = refusal(apply(&mut state, &join(2, 1, 5)));
    assert_eq!(why, Refusal::TokenRevoked(TokenRecordId(2)));
    assert_eq!(state.workers().count(), 2);
}

#[test]
fn a_coordinator_token_does_not_let_a_worker_in() {
    let mut state = State::default();
    let create = Command::CreateToken {
        secret_hash: hash(1),
        role: TokenRole::Coordinator,
        uses: 1,
        expires_at: 100,
    };
    apply(&mut state, &create);
    let why = refusal(apply(&mut state, &join(1, 1, 5)));
    assert_eq!(why, Refusal::TokenRole(TokenRecordId(1)));
    assert_eq!(state.token(TokenRecordId(1)).unwrap().uses_left, 1);
}

#[test]
fn epochs_grow_over_replans_replacements_and_deployments() {
    let mut state = State::default();
    let d = DeploymentId(1);
    assert_eq!(apply(&mut state, &put("a", 2)), Outcome::Deployment(d));
    let first = apply(&mut state, &commit(plan(d, "a", 0), None));
    assert_eq!(first, Outcome::Planned(Epoch(1)));
    // A planner that did not see epoch 1 is refused; one that did gets a newer epoch.
    let why = refusal(apply(&mut state, &commit(plan(d, "a", 0), None)));
    assert_eq!(
        why,
        Refusal::StalePlan {
            current: Some(Epoch(1))
        }
    );
    let second = apply(&mut state, &commit(plan(d, "a", 0), Some(Epoch(1))));
    assert_eq!(second, Outcome::Planned(Epoch(2)));
    let other = apply(&mut state, &commit(plan(d, "a", 1), None));
    assert_eq!(other, Outcome::Planned(Epoch(3)));
    // The same spec again keeps its plans, another spec drops them; the epoch goes on.
    apply(&mut state, &put("a", 2));
    assert_eq!(state.plans().count(), 2);
    apply(&mut state, &put("a", 1));
    assert_eq!(state.plans().count(), 0);
    let again = apply(&mut state, &commit(plan(d, "a", 0), None));
    assert_eq!(again, Outcome::Planned(Epoch(4)));
    // Only replicas of the spec, only its model.
    let why = refusal(apply(&mut state, &commit(plan(d, "a", 1), None)));
    assert!(matches!(why, Refusal::PlanMismatch(_)));
    let why = refusal(apply(&mut state, &commit(plan(d, "b", 0), Some(Epoch(4)))));
    assert!(matches!(why, Refusal::PlanMismatch(_)));
    assert_eq!(state.deployment_named("a").unwrap().created_at, 7);
}

#[test]
fn keys_belong_to_tenants_and_authenticate_by_hash() {
    let mut state = State::default();
    apply(&mut state, &bootstrap_command());
    let create = |key: u8| Command::CreateKey {
        tenant: "acme".into(),
        key_hash: hash(key),
        now: 1,
    };
    let made = apply(&mut state, &create(10));
    let (tenant, key) = (TenantId(1), KeyId(1));
    assert_eq!(made, Outcome::Key { tenant, key });
    assert_eq!(refusal(apply(&mut state, &create(10))), Refusal::KeyExists);
    apply(&mut state, &create(11));
    assert_eq!(state.tenants().count(), 1);
    let name = "acme".to_owned();
    let principal = Principal::Tenant { tenant, name, key };
    assert_eq!(state.authenticate(&hash(10)), Some(principal));
    assert_eq!(state.authenticate(&hash(200)), Some(Principal::Admin));
    assert_eq!(state.authenticate(&hash(12)), None);
    let again = refusal(apply(&mut state, &bootstrap_command()));
    assert_eq!(again, Refusal::AlreadyBootstrapped);
}

fn bootstrap_command() -> Command {
    Command::Bootstrap {
        name: "c".into(),
        ca_pem: "pem".into(),
        admin_key_hash: hash(200),
    }
}

pub(crate) fn usage(id: u64, key: u32) -> Command {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&id.to_le_bytes());
    Command::RecordUsage {
        id: UsageId(bytes),
        usage: UsageRecord {
            request: RequestId::parse("same-for-all").unwrap(),
            tenant: TenantId(1),
            key: KeyId(key),
            deployment: DeploymentId(1),
            prompt: Tokens(10),
            cached: Tokens(4),
            completion: Tokens(5),
            cost: NanoUsd(600),
        },
    }
}

#[test]
fn usage_counts_each_id_once_within_the_window() {
    let mut state = State::default();
    let key = Command::CreateKey {
        tenant: "acme".into(),
        key_hash: hash(1),
        now: 1,
    };
    apply(&mut state, &key);
    for id in [1, 2, 1, 2, 3] {
        assert_eq!(apply(&mut state, &usage(id, 1)), Outcome::Done);
    }
    let (_, total) = state.usage().next().unwrap();
    assert_eq!((total.requests, total.prompt), (3, Tokens(30)));
    assert_eq!(total.cost, NanoUsd(1_800));
    let why = refusal(apply(&mut state, &usage(4, 2)));
    assert_eq!(why, Refusal::UnknownKey(KeyId(2)));
    for id in 10..10 + limits::USAGE_WINDOW as u64 {
        apply(&mut state, &usage(id, 1));
    }
    assert_eq!(state.usage_seen.len(), limits::USAGE_WINDOW);
    assert!(
        state
            .usage_seen
            .values()
            .all(|o| state.usage_order.contains_key(o))
    );
    assert_eq!(crate::billing::usage::lines(&state, TenantId(1)).len(), 1);
}

#[test]
fn commands_and_states_survive_encoding_and_strange_bytes_are_refused() {
    let mut state = State::default();
    let commands = [
        bootstrap_command(),
        put("a", 1),
        commit(plan(DeploymentId(1), "a", 0), None),
        join(1, 1, 1),
        usage(1, 1),
    ];
    for command in &commands {
        let bytes = encode(command).unwrap();
        assert!(decode(&bytes).unwrap() == *command);
        assert!(decode(&bytes[..bytes.len() - 1]).is_err());
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(decode(&longer).is_err());
        let mut newer = bytes;
        newer[0] = 99;
        let version = CodecError::Version {
            found: 99,
            known: 1,
        };
        assert_eq!(
            decode(&newer).err().unwrap().to_string(),
            version.to_string()
        );
        apply(&mut state, command);
    }
    let bytes = encode_state(&state).unwrap();
    assert!(decode_state(&bytes).unwrap() == state);
    assert!(decode_state(&bytes[..bytes.len() / 2]).is_err());
}
