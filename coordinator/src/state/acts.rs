//! How acts are told in the audit log: who did what, and what came of it. No secret, no key and no hash
//! of one.

use super::settings::{KeySettings, Limits, TenantStatus};
use super::{Command, Outcome, Proposal};
use trireme_shared::ids::NanoUsd;
use trireme_shared::plan::DeploymentSpec;

/// Who did what, for acts that are recorded: all that come from somebody (`origin`) and change who
/// may do what or what is served, and joins and reports of acts from wherever.
pub(super) fn act(proposal: &Proposal) -> Option<(String, String)> {
    let origin = proposal.origin.as_ref().map(|o| o.who.clone());
    let unknown = || "unknown".to_owned();
    let what = match &proposal.command {
        Command::JoinCoordinator { token, .. } => {
            let who = origin.unwrap_or_else(|| format!("token {token}"));
            return Some((who, format!("join as a coordinator with token {token}")));
        }
        Command::JoinWorker { token, .. } => {
            let who = origin.unwrap_or_else(|| format!("token {token}"));
            return Some((who, format!("join as a worker with token {token}")));
        }
        Command::RecordAct { what, detail } => {
            let text = if detail.is_empty() {
                what.clone()
            } else {
                format!("{what}: {detail}")
            };
            return Some((origin.unwrap_or_else(unknown), text));
        }
        Command::PutCoordinator { .. }
        | Command::PutInventory { .. }
        | Command::CommitPlanV4 { .. }
        | Command::CommitPlan { .. }
        | Command::OpenGateway { .. }
        | Command::Report { .. }
        | Command::CloseGateway { .. }
        | Command::ReapGateway { .. }
        | Command::Upgrade
        | Command::UpgradeTo { .. }
        | Command::NoteDelivery { .. } => return None,
        Command::Bootstrap { name, cluster, .. } => format!("set up cluster {name} ({cluster})"),
        Command::PromoteCoordinator { id } => format!("let coordinator {id} vote"),
        Command::RemoveCoordinator { id } => format!("remove coordinator {id}"),
        Command::CreateToken {
            role,
            provider,
            uses,
            expires_at,
            ..
        } => {
            let role = format!("{role:?}").to_lowercase();
            let of = provider.as_ref().map(|p| format!(" of provider {p}"));
            let of = of.unwrap_or_default();
            format!("create a {role} token{of}, {uses} uses, expires at {expires_at}")
        }
        Command::RevokeToken { id } => format!("revoke token {id}"),
        Command::RemoveWorker { id } => format!("remove worker {id}"),
        Command::PutCertificate {
            node, expires_at, ..
        } => format!("certify {node} until {expires_at}"),
        Command::PutDeploymentV4 { spec } => deploy(&spec.clone().into()),
        Command::PutDeployment { spec } => deploy(spec),
        Command::RemoveDeployment { id } => format!("remove deployment {id}"),
        Command::PutTenant { .. }
        | Command::CreateKey { .. }
        | Command::UpdateKey { .. }
        | Command::RevokeKey { .. }
        | Command::RotateKey { .. }
        | Command::PutPrice { .. }
        | Command::SetFee { .. }
        | Command::Credit { .. }
        | Command::Refund { .. }
        | Command::Payout { .. } => billing_act(&proposal.command)?,
        // Not its path: that may be a secret.
        Command::PutWebhook {
            tenant,
            url,
            rotate,
            ..
        } => {
            let host = url.split('/').nth(2).unwrap_or_default();
            let anew = if *rotate { ", with a new secret" } else { "" };
            format!("set the webhook of {tenant} at {host}{anew}")
        }
        Command::RemoveWebhook { tenant } => format!("remove the webhook of {tenant}"),
        Command::TestWebhook { tenant } => format!("test the webhook of {tenant}"),
        Command::AddAuthority { pem } => format!("trust authority {}", authority(pem)),
        Command::SignWith { fingerprint } => sign_with(fingerprint),
        Command::RetireAuthority { fingerprint } => format!("retire authority {fingerprint}"),
        Command::Refound { cluster, name, .. } => {
            format!("found cluster {name} ({cluster}) anew from a backup")
        }
    };
    origin.map(|who| (who, what))
}

/// Not the model's source: an address may hold a password.
fn deploy(spec: &DeploymentSpec) -> String {
    let mut text = format!(
        "deploy {}, tensor parallel {}, pipeline parallel {}, {} replicas",
        spec.model.name, spec.tensor_parallel, spec.pipeline_parallel, spec.replicas
    );
    for (name, value) in spec.precision.settings() {
        text.push_str(&format!(", {name} {value}"));
    }
    text
}

/// Acts that move money, or say who may spend how much of it. Amounts in nano-dollars.
fn billing_act(command: &Command) -> Option<String> {
    let limit = |l: Option<u64>| l.map_or("none".to_owned(), |l| l.to_string());
    let budget = |b: Option<NanoUsd>| limit(b.map(|b| b.0.unsigned_abs()));
    let limits = |of: &Limits| {
        format!(
            "requests a minute {}, tokens a minute {}, tokens a day {}, at once {}",
            limit(of.requests_per_minute),
            limit(of.tokens_per_minute.map(|t| t.0)),
            limit(of.tokens_per_day.map(|t| t.0)),
            limit(of.concurrency),
        )
    };
    let key_settings = |s: &KeySettings| {
        format!(
            "named {:?}, expires at {}, inference {}, billing {}, models {}, budget {}, {}",
            s.name,
            limit(s.expires_at),
            s.scopes.inference,
            s.scopes.billing,
            s.models.as_ref().map_or("all".into(), |m| m.join(" ")),
            budget(s.monthly_budget),
            limits(&s.limits),
        )
    };
    Some(match command {
        Command::PutTenant { name, settings: s } => format!(
            "set tenant {name}: {}, credit {}, budget {}, weight {}, {}",
            match s.status {
                TenantStatus::Active => "active",
                TenantStatus::Suspended => "suspended",
            },
            s.credit(),
            budget(s.monthly_budget),
            s.weight,
            limits(&s.limits),
        ),
        Command::CreateKey {
            tenant, settings, ..
        } => match *settings == KeySettings::default() {
            true => format!("create a key for tenant {tenant}"),
            false => format!(
                "create a key for tenant {tenant}: {}",
                key_settings(settings)
            ),
        },
        Command::UpdateKey { key, settings } => {
            format!("set key {key}: {}", key_settings(settings))
        }
        Command::RevokeKey { key } => format!("revoke key {key}"),
        Command::RotateKey { key, overlap, .. } => {
            format!("replace key {key}, which works for {overlap} more seconds")
        }
        Command::PutPrice {
            model,
            effective_from,
            list,
        } => format!(
            "price {model} from {effective_from} on: input {}, cached input {}, output {} a million \
             tokens, at least {} a request",
            list.input, list.cached_input, list.output, list.minimum
        ),
        Command::SetFee { fee } => format!("set the platform's fee to {fee} basis points"),
        Command::Credit {
            tenant,
            amount,
            reason,
        } => format!("credit tenant {tenant} with {amount}: {reason}"),
        Command::Refund {
            request,
            amount,
            reason,
        } => format!("refund {amount} of request {request}: {reason}"),
        Command::Payout {
            provider,
            amount,
            reason,
        } => format!("pay {amount} out to provider {provider}: {reason}"),
        _ => return None,
    })
}

/// How the act of `Command::SignWith` is told: a rotation of the CA looks up when it was.
pub fn sign_with(fingerprint: &str) -> String {
    format!("sign with authority {fingerprint}")
}

fn authority(pem: &str) -> String {
    super::cluster::fingerprint(pem).unwrap_or_else(|_| "that is none".into())
}

pub(super) fn told(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done => "done".into(),
        Outcome::Coordinator(id) => format!("coordinator {id}"),
        Outcome::Token(id) => format!("token {id}"),
        Outcome::Worker(id) => format!("worker {id}"),
        Outcome::Deployment(id) => format!("deployment {id}"),
        Outcome::Planned(epoch) => format!("epoch {epoch}"),
        Outcome::Key { tenant, key } => format!("key {key} of tenant {tenant}"),
        Outcome::Tenant(id) => format!("tenant {id}"),
        Outcome::Posting(id) => format!("posting {id}"),
        Outcome::Gateway(life) => format!("gateway {life}"),
        Outcome::Reported { .. } => "reported".into(),
        Outcome::Refused(why) => format!("refused: {why}"),
        Outcome::Webhook { fresh: true } => "done, with a new secret".into(),
        Outcome::Webhook { fresh: false } => "done".into(),
        Outcome::Event(seq) => format!("event {seq}"),
    }
}
