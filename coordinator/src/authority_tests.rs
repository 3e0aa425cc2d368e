//! A rotation, step by step, under times that only grow.

use super::*;
use crate::state::{ClusterId, Proposal, ProposalId, TokenRole, apply};
use trireme_shared::ids::{TokenRecordId, WorkerId};

const LIFETIME: u64 = limits::NODE_CERTIFICATE_LIFETIME.as_secs();
const SKEW: u64 = limits::CLOCK_SKEW_MAX.as_secs();
const SETTLE: u64 = limits::AUTHORITY_SETTLE.as_secs();
const C1: NodeId = NodeId::Coordinator(CoordinatorId(1));
const W1: NodeId = NodeId::Worker(WorkerId(1));

/// A cluster of one coordinator and one worker, in the middle of a rotation.
struct World {
    state: State,
    old: String,
    new: String,
    /// When the newer authority was made (seconds since 1970).
    made_at: u64,
}

impl World {
    fn new() -> Self {
        let old = ClusterAuthority::new("c").unwrap();
        // Within the same second: the order must not hang on the clock.
        let new = old.successor().unwrap();
        let made_at = seconds(new.begins_at().unwrap()).unwrap() + SKEW;
        let mut world = Self {
            state: State::default(),
            old: old.fingerprint().to_string(),
            new: new.fingerprint().to_string(),
            made_at,
        };
        for command in [
            Command::Bootstrap {
                name: "c".into(),
                cluster: ClusterId([1; 16]),
                authority_pem: old.to_pem(),
                admin_key_hash: [1; 32],
            },
            Command::CreateToken {
                secret_hash: [2; 32],
                role: TokenRole::Worker,
                provider: None,
                uses: 1,
                expires_at: u64::MAX,
            },
            Command::JoinWorker {
                token: TokenRecordId(1),
                secret_hash: [2; 32],
            },
        ] {
            world.apply(made_at - 100, command);
        }
        world.certify(C1, made_at - 100);
        world.certify(W1, made_at - 100);
        assert_eq!(stage(&world.state), Stage::Settled);
        world.apply(made_at, Command::AddAuthority { pem: new.to_pem() });
        world
    }

    fn apply(&mut self, at: u64, command: Command) {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.state.commands().to_le_bytes());
        let proposal = Proposal {
            id: ProposalId(id),
            base: self.state.commands(),
            at_ms: at * 1_000,
            origin: Some(Origin {
                who: "t".into(),
                from: "t".into(),
            }),
            command,
        };
        let outcome = apply(&mut self.state, &proposal).outcome;
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    }

    fn certify(&mut self, node: NodeId, at: u64) {
        let command = Command::PutCertificate {
            node,
            fingerprint: format!("{at:064x}"),
            expires_at: at + LIFETIME,
        };
        self.apply(at, command);
    }

    /// What the leader that first saw the stage at `seen_at` does at `now`.
    fn next(&self, seen_at: u64, now: u64, trusting: &[NodeId]) -> Option<Command> {
        let facts = Facts {
            now,
            seen_at,
            trusting: trusting.iter().copied().collect(),
        };
        next(&self.state, &facts)
    }

    fn sign(&mut self, at: u64) {
        let fingerprint = self.new.clone();
        self.apply(at, Command::SignWith { fingerprint });
    }
}

#[test]
fn the_new_one_signs_once_every_node_trusts_it_and_a_moment_has_passed() {
    let world = World::new();
    let (old, new) = (world.old.clone(), world.new.clone());
    assert_eq!(stage(&world.state), Stage::Spreading { new, old });
    let at = world.made_at;
    let sign = Some(Command::SignWith {
        fingerprint: world.new.clone(),
    });
    assert!(
        world.next(at, at + SETTLE, &[C1]).is_none(),
        "w1 has not said"
    );
    assert!(
        world.next(at, at + SETTLE - 1, &[C1, W1]).is_none(),
        "too soon"
    );
    assert!(world.next(at, at + SETTLE, &[C1, W1]) == sign);
    // A new leader begins to wait anew.
    assert!(world.next(at + 100, at + 100, &[C1, W1]).is_none());
}

#[test]
fn a_node_that_is_away_holds_it_up_until_its_certificate_has_ended() {
    let world = World::new();
    let at = world.made_at;
    assert!(world.next(at, at + LIFETIME, &[C1]).is_none());
    assert!(world.next(at, at + LIFETIME + SKEW + 1, &[C1]).is_some());
    let facts = Facts {
        now: at + 60,
        seen_at: at,
        trusting: [C1].into(),
    };
    let told = waits(&world.state, Some(&facts)).unwrap();
    assert!(told.ends_with("waits for worker w1"), "{told}");
}

#[test]
fn the_old_one_goes_once_every_certificate_is_of_the_new_one() {
    let mut world = World::new();
    let signed = world.made_at + 60;
    world.sign(signed);
    let (old, new) = (world.old.clone(), world.new.clone());
    assert_eq!(stage(&world.state), Stage::Renewing { new, old });
    let retire = Command::RetireAuthority {
        fingerprint: world.old.clone(),
    };
    // By the audit log, whenever this leader came to office.
    let later = signed + LIFETIME - 10;
    world.certify(C1, signed + 1);
    assert!(
        world.next(later, later, &[]).is_none(),
        "w1 has its old one"
    );
    world.certify(W1, signed + 1_000);
    let half = signed + LIFETIME / 2 + 2 * SKEW;
    assert!(world.next(signed, half - 1, &[]).is_none(), "clocks differ");
    assert!(world.next(signed, half, &[]).as_ref() == Some(&retire));
    world.apply(half, retire);
    assert_eq!(stage(&world.state), Stage::Settled);
    let signing = world.state.signing_authority().unwrap();
    assert_eq!(signing.fingerprint, world.new);
}

#[test]
fn the_old_one_goes_at_the_latest_when_no_certificate_of_it_can_be_valid() {
    let mut world = World::new();
    let signed = world.made_at + 60;
    world.sign(signed);
    assert!(world.next(signed, signed + LIFETIME + SKEW, &[]).is_none());
    assert!(
        world
            .next(signed, signed + LIFETIME + SKEW + 1, &[])
            .is_some()
    );
}

#[test]
fn a_further_rotation_is_told_from_the_one_before() {
    let mut world = World::new();
    world.sign(world.made_at + 60);
    let fingerprint = world.old.clone();
    world.apply(world.made_at + 90, Command::RetireAuthority { fingerprint });
    let signing = world.state.signing_authority().unwrap().pem.clone();
    let third = ClusterAuthority::from_pem(&signing)
        .unwrap()
        .successor()
        .unwrap();
    let pem = third.to_pem();
    world.apply(world.made_at + 91, Command::AddAuthority { pem });
    let (old, new) = (world.new.clone(), third.fingerprint().to_string());
    assert_eq!(stage(&world.state), Stage::Spreading { new, old });
}
