//! Providers are paid for what their workers did, on uneven ranks and when one takes over from another.

use super::super::work::LAYER_UNITS;
use super::*;
use crate::state::{Account, Counts, Ended, Final, KeySettings, Progress, Report, Work};
use trireme_shared::ids::{GatewayLife, KeyId, NanoUsd, Tokens};

/// Layers of `placement::tests::manifest`.
const LAYERS: u64 = 3;
/// Tokens of the prompt that `World::generate` sends.
const PROMPT: u64 = 3;

async fn world(replicas: u16, tp: u16) -> World {
    let mut world = World::new(0, tp, replicas).await;
    world.add_worker(Some("slow"), 1).await;
    world.add_worker(Some("swift"), 2).await;
    world.ready(replicas.into()).await;
    world
}

fn units(log: &WorkLog, provider: &str) -> u64 {
    let work = log.so_far();
    let of = |w: &&Work| w.provider.as_deref() == Some(provider);
    work.iter().find(of).map_or(0, |w| w.units)
}

/// Settles a request with that work; gives what it cost and the providers' balances.
async fn settled(world: &World, completion: u64, work: &WorkLog) -> (i64, [i64; 2]) {
    let group = &world.fleet.shared.group;
    let tenant = "acme".to_owned();
    let key = world
        .fleet
        .create_key(Terms::default(), tenant, KeySettings::default());
    key.await.unwrap();
    let coordinator = group.own();
    let opened = group.propose(Command::OpenGateway { coordinator }).await;
    let Ok(Outcome::Gateway(life)) = opened else {
        panic!("{opened:?}");
    };
    let progress = Progress {
        request: RequestId::random(),
        caller_id: None,
        tenant: TenantId(1),
        key: KeyId(1),
        model: "tiny".into(),
        began_at_ms: 1_000,
        idempotency: None,
        counts: Counts {
            prompt: Tokens(PROMPT),
            cached: Tokens(0),
            completion: Tokens(completion),
        },
        work: work.so_far(),
    };
    let ended = Ended::Finished;
    let finals = vec![Final { progress, ended }];
    let report = Report {
        finals,
        ..Report::new(GatewayLife(life.0))
    };
    let outcome = group.propose(Command::Report { report }).await.unwrap();
    assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    group.read(|state| {
        let earned = |name: &str| state.balance(&Account::Provider(name.into())).0;
        let NanoUsd(owed) = state.balance(&Account::Tenant(TenantId(1)));
        (-owed, [earned("slow"), earned("swift")])
    })
}

#[test]
fn two_providers_of_one_replica_are_paid_by_their_shares() {
    runtime().block_on(async {
        let world = world(1, 2).await;
        let log = WorkLog::default();
        // Two choices of one request: their work adds up.
        for _ in 0..2 {
            let tokens = collect(&mut world.generate_into(&log, 40)).await.unwrap();
            assert_eq!(tokens.len(), 40);
        }
        let work = [units(&log, "slow"), units(&log, "swift")];
        let all = 2 * (PROMPT + 40) * LAYERS * LAYER_UNITS;
        assert_eq!(work[0] + work[1], all);
        // One KV head in three and 53 FFN columns in 160: (1/3 + 53/160) / 2.
        let due = all * 319 / 960;
        assert!(work[0].abs_diff(due) <= all / 10_000, "{work:?} of {all}");

        let (cost, earned) = settled(&world, 80, &log).await;
        assert_eq!(cost, 3 * 20 + 80 * 60, "by the default prices");
        // The platform keeps a tenth.
        let shared = cost as u128 * 9 / 10;
        let share = |units: u64| (shared * u128::from(units) / u128::from(all)) as i64;
        assert_eq!(earned, [share(work[0]), share(work[1])]);
        assert!(earned[0] > 0 && earned[1] > earned[0], "{earned:?}");
        world.end().await;
    });
}

#[test]
fn a_provider_that_takes_over_is_paid_for_what_it_computes_again() {
    runtime().block_on(async {
        let world = world(2, 1).await;
        world.plot.set(Trap::Lost, 17);
        let log = WorkLog::default();
        let tokens = collect(&mut world.generate_into(&log, 40)).await.unwrap();
        assert_eq!(tokens.len(), 40);
        let requests = world.plot.requests.lock().unwrap().clone();
        let (_, emitted) = requests[1];
        assert_eq!(emitted, 17, "`Lost` is said after all tokens");
        let mut work = [units(&log, "slow"), units(&log, "swift")];
        work.sort_unstable();
        let token = LAYERS * LAYER_UNITS;
        assert_eq!(work, [(PROMPT + 17) * token, (PROMPT + 40) * token]);
        let (_, earned) = settled(&world, 40, &log).await;
        assert!(earned.iter().all(|e| *e > 0), "{earned:?}");
        world.end().await;
    });
}

#[test]
fn a_flood_of_one_tenant_leaves_streams_of_each_driver_to_others() {
    runtime().block_on(async {
        let world = world(1, 2).await;
        // Every stream stays open.
        world.plot.set(Trap::Silent, 0);
        world.plot.keep();
        let most = limits::GENERATE_STREAMS_MAX as usize;
        let mut refused = 0;
        let mut open = Vec::new();
        for _ in 0..most {
            let mut stream = world.generate(4);
            match stream.next().await.unwrap() {
                Ok(_) => open.push(stream),
                Err(error) => {
                    assert_eq!(error, DispatchError::Overloaded);
                    refused += 1;
                }
            }
        }
        assert!(refused >= most / 6, "only {refused} were refused");
        assert!(open.len() >= most * 3 / 4, "only {} got in", open.len());
        let mut other = world.generate_as(TenantId(2), &WorkLog::default(), 4);
        assert!(other.next().await.unwrap().is_ok());
        world.end().await;
    });
}
