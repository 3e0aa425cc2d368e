//! `apply`: the only function that changes the state.

use super::billing::{self, Reason};
use super::cluster::Cluster;
use super::proposals::Admission;
use super::{Applied, Command, Effect, Outcome, Proposal, Refusal, State, versions, webhooks};
use trireme_shared::api::Role;
use trireme_shared::identity::NodeId;
use trireme_shared::ids::{CoordinatorId, Epoch, TokenRecordId, WorkerId};
use trireme_shared::plan::{DeploymentSpec, ReplicaPlan};

/// Applies one committed proposal. A proposal that was applied before gives its old outcome and
/// changes nothing. A refused command changes nothing but the window of proposals, where the refusal
/// is remembered, and the audit log, which tells of it; one refused for its age not even these.
///
/// # Panics
/// If an invariant of the state is broken (see the areas): going on would lose money or tokens.
pub fn apply(state: &mut State, proposal: &Proposal) -> Applied {
    let unchanged = |outcome| Applied {
        outcome,
        effects: Vec::new(),
    };
    match state.proposals.admit(proposal) {
        Admission::Repeat(outcome) => return unchanged(outcome),
        Admission::Refuse(why) => return unchanged(Outcome::Refused(why)),
        Admission::Apply => {}
    }
    let applied = match change(state, proposal) {
        Ok((outcome, effects)) => Applied { outcome, effects },
        Err(why) => unchanged(Outcome::Refused(why)),
    };
    if !matches!(applied.outcome, Outcome::Refused(_)) {
        state.now_ms = state.now_ms.max(proposal.at_ms);
        webhooks::turn_month(state);
    }
    state.audit.record(proposal, &applied.outcome);
    state
        .proposals
        .remember(proposal.id, applied.outcome.clone());
    applied
}

pub(super) type Changed = Result<(Outcome, Vec<Effect>), Refusal>;

fn change(state: &mut State, proposal: &Proposal) -> Changed {
    let now = proposal.at_ms / 1_000;
    // Of the proposers' clocks the one furthest ahead: for money and limits time never goes back.
    let now_ms = state.now_ms.max(proposal.at_ms);
    let with = |outcome: Outcome, effect: Effect| (outcome, vec![effect]);
    match &proposal.command {
        Command::Bootstrap {
            name,
            cluster,
            authority_pem,
            admin_key_hash,
        } => {
            let cluster = Cluster {
                id: *cluster,
                name: name.clone(),
                admin_key_hash: *admin_key_hash,
            };
            bootstrap(state, cluster, authority_pem, now)
        }
        Command::PutCoordinator {
            id,
            http,
            control,
            version,
        } => Ok(with(
            state.members.put(*id, http, control, version)?,
            Effect::Members,
        )),
        Command::JoinCoordinator { token, secret_hash } => {
            join_coordinator(state, *token, secret_hash, now)
        }
        Command::PromoteCoordinator { id } => {
            Ok(with(state.members.promote(*id)?, Effect::Members))
        }
        Command::RemoveCoordinator { id } => {
            let outcome = state.members.remove(*id)?;
            let gone = Effect::Removed(NodeId::Coordinator(*id));
            Ok((outcome, vec![Effect::Members, gone]))
        }
        Command::CreateToken {
            secret_hash,
            role,
            provider,
            uses,
            expires_at,
        } => {
            let (hash, provider) = (*secret_hash, provider.clone());
            let made = state
                .tokens
                .create(hash, *role, provider, *uses, *expires_at)?;
            Ok(with(made, Effect::Tokens))
        }
        Command::RevokeToken { id } => Ok(with(state.tokens.revoke(*id)?, Effect::Tokens)),
        Command::JoinWorker { token, secret_hash } => join_worker(state, *token, secret_hash, now),
        Command::RemoveWorker { id } => remove_worker(state, *id),
        Command::PutCertificate {
            node,
            fingerprint,
            expires_at,
        } => put_certificate(state, *node, fingerprint, *expires_at),
        Command::PutInventory { worker, inventory } => {
            known_worker(state, *worker)?;
            let outcome = state.workers.put_inventory(*worker, inventory)?;
            Ok(with(outcome, Effect::Workers))
        }
        Command::PutDeploymentV4 { spec } => Ok(put_deployment(state, &spec.clone().into(), now)),
        Command::PutDeployment { spec } => Ok(put_deployment(state, spec, now)),
        Command::RemoveDeployment { id } => {
            let outcome = state.deployments.remove(*id)?;
            state.plans.drop_of(*id);
            Ok((outcome, vec![Effect::Deployments, Effect::Plans]))
        }
        Command::CommitPlanV4 { plan, previous } => {
            commit_plan(state, &(**plan).clone().into(), *previous)
        }
        Command::CommitPlan { plan, previous } => commit_plan(state, plan, *previous),
        Command::PutTenant { name, settings } => billing::put_tenant(state, name, settings, now_ms),
        Command::CreateKey {
            tenant,
            key_hash,
            settings,
        } => {
            let made = state.tenants.create_key(tenant, key_hash, settings, now)?;
            Ok(with(made, Effect::Keys))
        }
        Command::UpdateKey { key, settings } => Ok(with(
            state.tenants.update_key(*key, settings)?,
            Effect::Keys,
        )),
        Command::RevokeKey { key } => Ok(with(state.tenants.revoke_key(*key, now)?, Effect::Keys)),
        Command::RotateKey {
            key,
            key_hash,
            overlap,
        } => {
            let made = state.tenants.rotate_key(*key, key_hash, *overlap, now)?;
            Ok(with(made, Effect::Keys))
        }
        Command::PutPrice {
            model,
            effective_from,
            list,
        } => {
            let from = *effective_from;
            let outcome = state.prices.put(model, from, *list, now_ms / 1_000)?;
            Ok(with(outcome, Effect::Prices))
        }
        Command::SetFee { fee } => Ok(with(state.prices.set_fee(*fee)?, Effect::Prices)),
        Command::Credit {
            tenant,
            amount,
            reason,
        } => {
            let reason = Reason::of(proposal, reason)?;
            billing::credit(state, *tenant, *amount, reason, now_ms)
        }
        Command::Refund {
            request,
            amount,
            reason,
        } => {
            let reason = Reason::of(proposal, reason)?;
            billing::refund(state, request, *amount, reason, now_ms)
        }
        Command::Payout {
            provider,
            amount,
            reason,
        } => {
            let reason = Reason::of(proposal, reason)?;
            billing::payout(state, provider, *amount, reason, now_ms)
        }
        Command::OpenGateway { coordinator } => billing::open_gateway(state, *coordinator, now_ms),
        Command::Report { report } => billing::report(state, report, now_ms),
        Command::CloseGateway { life } => billing::close_gateway(state, *life, now_ms),
        Command::ReapGateway { life } => billing::reap_gateway(state, *life, now_ms),
        Command::AddAuthority { pem } => Ok(with(state.identity.add(pem)?, Effect::Authorities)),
        Command::SignWith { fingerprint } => Ok(with(
            state.identity.sign_with(fingerprint)?,
            Effect::Authorities,
        )),
        Command::RetireAuthority { fingerprint } => Ok(with(
            state.identity.retire(fingerprint)?,
            Effect::Authorities,
        )),
        Command::RecordAct { .. } => Ok((Outcome::Done, Vec::new())),
        Command::Upgrade => Ok((versions::raise(state, versions::OF_UPGRADE)?, Vec::new())),
        Command::UpgradeTo { version } => Ok((versions::raise(state, *version)?, Vec::new())),
        Command::PutWebhook {
            tenant,
            url,
            topics,
            secret,
            rotate,
        } => {
            let (to, signed) = ((url.as_str(), *topics), (secret, *rotate));
            Ok((
                webhooks::put(state, *tenant, to, signed, now_ms)?,
                Vec::new(),
            ))
        }
        Command::RemoveWebhook { tenant } => {
            Ok((webhooks::remove(state, *tenant, now_ms)?, Vec::new()))
        }
        Command::TestWebhook { tenant } => {
            Ok((webhooks::test(state, *tenant, now_ms)?, Vec::new()))
        }
        Command::NoteDelivery {
            tenant,
            event,
            failures,
            error,
        } => {
            let (event, error) = ((*tenant, *event), error.as_deref());
            let outcome =
                webhooks::note_delivery(&mut state.webhooks, event, *failures, error, now_ms);
            Ok((outcome, Vec::new()))
        }
        Command::Refound {
            cluster,
            name,
            authority_pem,
            admin_key_hash,
        } => {
            let old = state.identity.cluster.as_ref();
            let old = old.ok_or(Refusal::NotBootstrapped)?;
            if old.id == *cluster {
                return Err(Refusal::SameCluster);
            }
            let cluster = Cluster {
                id: *cluster,
                name: name.clone(),
                admin_key_hash: admin_key_hash.unwrap_or(old.admin_key_hash),
            };
            refound(state, cluster, authority_pem, now)
        }
    }
}

fn bootstrap(state: &mut State, cluster: Cluster, pem: &str, now: u64) -> Changed {
    if state.identity.cluster.is_some() {
        return Err(Refusal::AlreadyBootstrapped);
    }
    let outcome = state.identity.found(cluster, pem)?;
    state.members.seat(None, true, now);
    let effects = vec![Effect::Cluster, Effect::Authorities, Effect::Members];
    Ok((outcome, effects))
}

/// Everybody of the old cluster is removed; what the cluster serves and earned stays.
fn refound(state: &mut State, cluster: Cluster, pem: &str, now: u64) -> Changed {
    state.identity.found(cluster, pem)?;
    let coordinators = state.members.coordinators.keys();
    let workers = state.workers.rows.keys();
    let gone: Vec<NodeId> = coordinators
        .map(|id| NodeId::Coordinator(*id))
        .chain(workers.map(|id| NodeId::Worker(*id)))
        .collect();
    state.members.coordinators = Default::default();
    state.workers.rows = Default::default();
    state.tokens.rows = Default::default();
    state.plans.rows = Default::default();
    let mut effects = vec![
        Effect::Cluster,
        Effect::Authorities,
        Effect::Members,
        Effect::Workers,
        Effect::Tokens,
        Effect::Plans,
    ];
    for node in gone {
        state.members.removed.insert(node, ());
        effects.push(Effect::Removed(node));
    }
    let founder = state.members.seat(None, true, now);
    Ok((Outcome::Coordinator(founder), effects))
}

fn join_coordinator(
    state: &mut State,
    token: TokenRecordId,
    secret_hash: &[u8; 32],
    now: u64,
) -> Changed {
    let admitted = state
        .tokens
        .admits(token, secret_hash, Role::Coordinator, now)?;
    let votes = admitted.role == super::TokenRole::Coordinator;
    state.members.has_room()?;
    state.tokens.use_up(token);
    let id: CoordinatorId = state.members.seat(Some(token), votes, now);
    let effects = vec![Effect::Members, Effect::Tokens];
    Ok((Outcome::Coordinator(id), effects))
}

fn join_worker(
    state: &mut State,
    token: TokenRecordId,
    secret_hash: &[u8; 32],
    now: u64,
) -> Changed {
    let admitted = state.tokens.admits(token, secret_hash, Role::Worker, now)?;
    let id = state.workers.join(admitted, now);
    state.tokens.use_up(token);
    let effects = vec![Effect::Workers, Effect::Tokens];
    Ok((Outcome::Worker(id), effects))
}

/// Its plans stay: the planner sees that their worker is gone.
fn remove_worker(state: &mut State, id: WorkerId) -> Changed {
    known_worker(state, id)?;
    state.workers.rows.remove(&id);
    let node = NodeId::Worker(id);
    state.members.removed.insert(node, ());
    Ok((Outcome::Done, vec![Effect::Workers, Effect::Removed(node)]))
}

fn known_worker(state: &State, id: WorkerId) -> Result<(), Refusal> {
    let node = NodeId::Worker(id);
    if state.members.removed.contains_key(&node) {
        return Err(Refusal::Removed(node));
    }
    if !state.workers.rows.contains_key(&id) {
        return Err(Refusal::UnknownWorker(id));
    }
    Ok(())
}

fn put_certificate(state: &mut State, node: NodeId, fingerprint: &str, expires_at: u64) -> Changed {
    let certificate = Some(super::members::Certificate {
        fingerprint: fingerprint.to_owned(),
        expires_at,
    });
    let effect = match node {
        NodeId::Coordinator(id) => {
            state.members.member(id)?.certificate = certificate;
            Effect::Members
        }
        NodeId::Worker(id) => {
            known_worker(state, id)?;
            state.workers.member(id)?.certificate = certificate;
            Effect::Workers
        }
    };
    Ok((Outcome::Done, vec![effect]))
}

fn put_deployment(state: &mut State, spec: &DeploymentSpec, now: u64) -> (Outcome, Vec<Effect>) {
    let (id, respecified) = state.deployments.put(spec, now);
    let mut effects = vec![Effect::Deployments];
    if respecified {
        // Plans of another spec are not plans of this one. The epoch goes on growing.
        state.plans.drop_of(id);
        effects.push(Effect::Plans);
    }
    (Outcome::Deployment(id), effects)
}

fn commit_plan(state: &mut State, plan: &ReplicaPlan, previous: Option<Epoch>) -> Changed {
    let deployment = state
        .deployments
        .rows
        .get(&plan.deployment)
        .ok_or(Refusal::UnknownDeployment(plan.deployment))?;
    let outcome = state.plans.commit(deployment, plan, previous)?;
    Ok((outcome, vec![Effect::Plans]))
}

#[cfg(test)]
#[path = "apply_tests.rs"]
pub(crate) mod tests;
