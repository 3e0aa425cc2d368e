//! `apply`: the only function that changes the state.

use super::records::*;
use super::{Command, Outcome, Refusal, State, same_bytes};
use trireme_shared::ids::*;
use trireme_shared::limits;
use trireme_shared::plan::{DeploymentSpec, ReplicaPlan};

/// Applies one committed command. A refused command changes nothing.
///
/// # Panics
/// If an invariant of the state is broken (see the module): going on would lose money or tokens.
pub fn apply(state: &mut State, command: &Command) -> Outcome {
    let done = match command {
        Command::Bootstrap {
            name,
            ca_pem,
            admin_key_hash,
        } => bootstrap(state, name, ca_pem, admin_key_hash),
        Command::PutCoordinator { id, http, control } => {
            let (http, control) = (http.clone(), control.clone());
            let record = CoordinatorRecord {
                id: *id,
                http,
                control,
            };
            state.coordinators.insert(*id, record);
            Ok(Outcome::Done)
        }
        Command::CreateToken {
            secret_hash,
            role,
            uses,
            expires_at,
        } => create_token(state, *secret_hash, *role, *uses, *expires_at),
        Command::RevokeToken { id } => match state.tokens.get_mut(id) {
            Some(token) => {
                token.revoked = true;
                Ok(Outcome::Done)
            }
            None => Err(Refusal::UnknownToken),
        },
        Command::JoinWorker {
            token,
            secret_hash,
            now,
        } => join_worker(state, *token, secret_hash, *now),
        Command::PutCertificate {
            worker,
            fingerprint,
        } => match state.workers.get_mut(worker) {
            Some(record) => {
                record.certificate = Some(fingerprint.clone());
                Ok(Outcome::Done)
            }
            None => Err(Refusal::UnknownWorker(*worker)),
        },
        Command::PutDeployment { spec, price, now } => {
            Ok(put_deployment(state, spec, *price, *now))
        }
        Command::CommitPlan { plan, previous } => commit_plan(state, plan, *previous),
        Command::CreateKey {
            tenant,
            key_hash,
            now,
        } => create_key(state, tenant, key_hash, *now),
        Command::RecordUsage { id, usage } => record_usage(state, *id, usage),
    };
    done.unwrap_or_else(Outcome::Refused)
}

type Applied = Result<Outcome, Refusal>;

fn next(counter: &mut u32) -> u32 {
    *counter = counter
        .checked_add(1)
        .expect("four thousand million ids of one kind are never given");
    *counter
}

fn bootstrap(state: &mut State, name: &str, ca_pem: &str, admin: &[u8; 32]) -> Applied {
    if state.cluster.is_some() {
        return Err(Refusal::AlreadyBootstrapped);
    }
    state.cluster = Some(Cluster {
        name: name.to_owned(),
        ca_pem: ca_pem.to_owned(),
        admin_key_hash: *admin,
    });
    Ok(Outcome::Done)
}

fn create_token(
    state: &mut State,
    secret_hash: [u8; 32],
    role: TokenRole,
    uses: u32,
    expires_at: u64,
) -> Applied {
    if uses == 0 {
        return Err(Refusal::NoUses);
    }
    let id = TokenRecordId(next(&mut state.last_ids.token));
    let record = TokenRecord {
        id,
        secret_hash,
        role,
        uses_left: uses,
        expires_at,
        revoked: false,
    };
    state.tokens.insert(id, record);
    Ok(Outcome::Token(id))
}

fn join_worker(state: &mut State, id: TokenRecordId, hash: &[u8; 32], now: u64) -> Applied {
    let token = state.tokens.get_mut(&id).ok_or(Refusal::UnknownToken)?;
    if !same_bytes(&token.secret_hash, hash) {
        return Err(Refusal::UnknownToken);
    }
    if token.revoked {
        return Err(Refusal::TokenRevoked(id));
    }
    if now >= token.expires_at {
        return Err(Refusal::TokenExpired(id));
    }
    if token.role != TokenRole::Worker {
        return Err(Refusal::TokenRole(id));
    }
    token.uses_left = token
        .uses_left
        .checked_sub(1)
        .ok_or(Refusal::TokenUsedUp(id))?;
    let worker = WorkerId(next(&mut state.last_ids.worker));
    let record = WorkerRecord {
        id: worker,
        name: worker.to_string(),
        joined_at: now,
        token: id,
        certificate: None,
    };
    state.workers.insert(worker, record);
    Ok(Outcome::Worker(worker))
}

fn put_deployment(state: &mut State, spec: &DeploymentSpec, price: PriceList, now: u64) -> Outcome {
    let name = &spec.model.name;
    let (id, created_at) = match state.deployment_named(name) {
        Some(existing) => (existing.id, existing.created_at),
        None => (DeploymentId(next(&mut state.last_ids.deployment)), now),
    };
    state.deployment_names.insert(name.clone(), id);
    let deployment = Deployment {
        id,
        spec: spec.clone(),
        price,
        created_at,
    };
    let replaced = state.deployments.insert(id, deployment);
    // Plans of another spec are not plans of this one. The epoch goes on growing.
    if replaced.is_some_and(|old| old.spec != *spec) {
        state.plans.retain(|(of, _), _| *of != id);
    }
    Outcome::Deployment(id)
}

fn commit_plan(state: &mut State, plan: &ReplicaPlan, previous: Option<Epoch>) -> Applied {
    let deployment = state
        .deployments
        .get(&plan.deployment)
        .ok_or(Refusal::UnknownDeployment(plan.deployment))?;
    let spec = &deployment.spec;
    let ranks = usize::from(spec.tensor_parallel) * usize::from(spec.pipeline_parallel);
    if plan.replica.0 >= spec.replicas {
        let text = format!("replica {} of {}", plan.replica, spec.replicas);
        return Err(Refusal::PlanMismatch(text));
    }
    if plan.model != spec.model
        || plan.tensor_parallel != spec.tensor_parallel
        || plan.pipeline_parallel != spec.pipeline_parallel
        || plan.ranks.len() != ranks
    {
        return Err(Refusal::PlanMismatch("model or split changed".into()));
    }
    let key = (plan.deployment, plan.replica);
    let current = state.plans.get(&key).map(|p| p.epoch);
    if current != previous {
        return Err(Refusal::StalePlan { current });
    }
    let epoch = Epoch(
        state
            .last_epoch
            .0
            .checked_add(1)
            .expect("2^64 plans are never made"),
    );
    let mut plan = plan.clone();
    plan.epoch = epoch;
    state.last_epoch = epoch;
    let old = state.plans.insert(key, plan);
    assert!(
        old.is_none_or(|p| p.epoch < epoch),
        "an epoch only grows: {epoch} came after a newer one"
    );
    let same = state.plans.values().filter(|p| p.epoch == epoch).count();
    assert_eq!(same, 1, "at most one plan per epoch: {epoch} has {same}");
    Ok(Outcome::Planned(epoch))
}

fn create_key(state: &mut State, tenant: &str, key_hash: &[u8; 32], now: u64) -> Applied {
    if state.key_hashes.contains_key(key_hash) {
        return Err(Refusal::KeyExists);
    }
    let owner = match state.tenant_names.get(tenant) {
        Some(id) => *id,
        None => {
            let id = TenantId(next(&mut state.last_ids.tenant));
            let record = Tenant {
                id,
                name: tenant.to_owned(),
                created_at: now,
            };
            state.tenants.insert(id, record);
            state.tenant_names.insert(tenant.to_owned(), id);
            id
        }
    };
    let id = KeyId(next(&mut state.last_ids.key));
    let key = ApiKey {
        id,
        tenant: owner,
        created_at: now,
    };
    state.keys.insert(id, key);
    state.key_hashes.insert(*key_hash, id);
    Ok(Outcome::Key {
        tenant: owner,
        key: id,
    })
}

/// Counts a record once. Ids are remembered for the newest `limits::USAGE_WINDOW` records: a
/// proposal is retried within seconds or not at all, so an older repeat cannot happen.
fn record_usage(state: &mut State, id: UsageId, usage: &UsageRecord) -> Applied {
    if state.usage_seen.contains_key(&id) {
        return Ok(Outcome::Done);
    }
    let known = state.keys.get(&usage.key);
    if known.is_none_or(|key| key.tenant != usage.tenant) {
        return Err(Refusal::UnknownKey(usage.key));
    }
    state.last_ids.usage += 1;
    let order = state.last_ids.usage;
    state.usage_seen.insert(id, order);
    state.usage_order.insert(order, id);
    if state.usage_order.len() > limits::USAGE_WINDOW
        && let Some((_, oldest)) = state.usage_order.pop_first()
    {
        state.usage_seen.remove(&oldest);
    }
    assert_eq!(
        state.usage_seen.len(),
        state.usage_order.len(),
        "the window of usage ids has two sides of one length"
    );
    let total = state
        .usage
        .entry((usage.tenant, usage.key, usage.deployment))
        .or_default();
    total.requests = total.requests.saturating_add(1);
    total.prompt.0 = total.prompt.0.saturating_add(usage.prompt.0);
    total.cached.0 = total.cached.0.saturating_add(usage.cached.0);
    total.completion.0 = total.completion.0.saturating_add(usage.completion.0);
    total.cost.0 = total.cost.0.saturating_add(usage.cost.0);
    Ok(Outcome::Done)
}

#[cfg(test)]
#[path = "apply_tests.rs"]
pub(crate) mod tests;
