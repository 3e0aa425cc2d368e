//! `cluster plan`: which worker holds what of the model.

use super::ClientArgs;
use crate::{size, term};
use anyhow::Result;
use clap::Args;
use trireme_shared::model::Span;
use trireme_shared::plan::{LinkPolicy, ReplicaPlan};

#[derive(Args)]
#[command(after_help = "Example:\n  cluster plan\n  cluster plan --json | jq '.[0].ranks'")]
pub struct PlanArgs {
    #[command(flatten)]
    client: ClientArgs,
}

impl PlanArgs {
    pub fn run(self) -> Result<()> {
        let plans: Vec<ReplicaPlan> = self.client.admin()?.get("/admin/v1/plan")?;
        if self.client.json {
            return term::json(&plans);
        }
        if plans.is_empty() {
            term::out("nothing is planned; `cluster status` says what is missing");
        }
        for plan in &plans {
            let link = match plan.link {
                LinkPolicy::Auto => "auto",
                LinkPolicy::Quic => "quic",
            };
            term::out(format!(
                "{}  replica {}  epoch {}  tp {} x pp {}  links {link}  context {}{}",
                term::bold(&plan.model.name),
                plan.replica.0,
                plan.epoch.0,
                plan.tensor_parallel,
                plan.pipeline_parallel,
                plan.context,
                super::precision(&plan.precision),
            ));
            term::out(table(plan, 1));
        }
        Ok(())
    }
}

/// One row for each rank. `group` is how many query heads share a key/value head; 1 shows
/// key/value heads.
pub fn rows(plan: &ReplicaPlan, group: u32) -> Vec<Vec<String>> {
    plan.ranks
        .iter()
        .map(|rank| {
            let share = &rank.share;
            let heads = Span::new(share.kv_heads.start * group, share.kv_heads.end * group);
            vec![
                rank.worker.to_string(),
                plan.replica.0.to_string(),
                share.stage.0.to_string(),
                share.rank.0.to_string(),
                span(share.layers),
                span(heads),
                span(share.ffn),
                size::bytes(rank.weight_bytes),
            ]
        })
        .collect()
}

/// The header that goes with `rows`.
pub fn header(group: u32) -> [&'static str; 8] {
    let heads = if group == 1 { ">KV heads" } else { ">heads" };
    [
        "worker",
        ">replica",
        ">stage",
        ">rank",
        ">layers",
        heads,
        ">FFN columns",
        ">weights",
    ]
}

fn table(plan: &ReplicaPlan, group: u32) -> String {
    term::table(&header(group), rows(plan, group))
}

/// A span as people count: first and last.
fn span(span: Span) -> String {
    match span.len() {
        0 => "none".to_owned(),
        1 => span.start.to_string(),
        _ => format!("{}-{}", span.start, span.end - 1),
    }
}
