//! What `up` leaves behind and prints once the cluster serves: the ready file, this user's last
//! cluster, and the table of who holds what.

use super::group::{admin_key, urls};
use crate::cmd::plan;
use crate::last::{Last, write_private};
use crate::term;
use anyhow::Result;
use serde::Serialize;
use std::path::Path;
use trireme_shared::api::{CoordinatorFile, DeploymentReport, StatusReport};
use trireme_shared::ids::{CoordinatorId, Rank, Replica, Stage, WorkerId};

/// A cluster that serves.
pub struct Serving {
    /// In the order of their folders; the first is the one that clients are told of.
    pub coordinators: Vec<CoordinatorFile>,
    pub status: StatusReport,
    pub deployment: DeploymentReport,
    pub api_key: String,
    /// Query heads that share a key/value head.
    pub group: u32,
}

/// The ready file: what scripts read to find the cluster.
#[derive(Debug, Serialize)]
struct ReadyFile {
    endpoint: String,
    api_key: String,
    admin_key: String,
    model: String,
    coordinators: Vec<ReadyCoordinator>,
    workers: Vec<ReadyWorker>,
}

#[derive(Debug, Serialize)]
struct ReadyCoordinator {
    id: CoordinatorId,
    pid: u32,
    http: String,
    control: String,
}

#[derive(Debug, Serialize)]
struct ReadyWorker {
    id: WorkerId,
    pid: u32,
    replica: Replica,
    stage: Stage,
    rank: Rank,
}

impl Serving {
    fn model(&self) -> &str {
        &self.deployment.spec.model.name
    }

    /// The first gateway.
    fn first(&self) -> &str {
        self.coordinators.first().map_or("", |c| &c.http)
    }

    /// The address for OpenAI clients.
    fn endpoint(&self) -> String {
        format!("{}/v1", self.first())
    }

    fn ready_file(&self) -> ReadyFile {
        let pid_of = |id: WorkerId| {
            let worker = self.status.workers.iter().find(|w| w.id == id);
            worker
                .and_then(|w| w.inventory.as_ref())
                .map_or(0, |i| i.pid)
        };
        let plans = self
            .deployment
            .replicas
            .iter()
            .filter_map(|r| r.plan.as_ref());
        let workers = plans.flat_map(|plan| {
            plan.ranks.iter().map(|rank| ReadyWorker {
                id: rank.worker,
                pid: pid_of(rank.worker),
                replica: plan.replica,
                stage: rank.share.stage,
                rank: rank.share.rank,
            })
        });
        ReadyFile {
            endpoint: self.first().to_owned(),
            api_key: self.api_key.clone(),
            admin_key: admin_key(&self.coordinators).to_owned(),
            model: self.model().to_owned(),
            coordinators: self
                .coordinators
                .iter()
                .map(|c| ReadyCoordinator {
                    id: c.id,
                    pid: c.pid,
                    http: c.http.clone(),
                    control: c.control.clone(),
                })
                .collect(),
            workers: workers.collect(),
        }
    }

    /// Writes the ready file (where asked for) and this user's last cluster.
    pub fn write(&self, ready_file: Option<&Path>) -> Result<()> {
        Last {
            coordinators: urls(&self.coordinators),
            api_key: self.api_key.clone(),
            admin_key: admin_key(&self.coordinators).to_owned(),
            model: self.model().to_owned(),
        }
        .save()?;
        match ready_file {
            Some(path) => write_private(path, &serde_json::to_vec_pretty(&self.ready_file())?),
            None => Ok(()),
        }
    }

    /// Prints how to use it.
    pub fn print(&self) {
        term::out("");
        term::out(format!("  endpoint     {}", term::bold(&self.endpoint())));
        for other in self.coordinators.iter().skip(1) {
            term::out(format!("               {}/v1", other.http));
        }
        term::out(format!("  API key      {}", term::bold(&self.api_key)));
        term::out(format!("  model        {}", term::bold(self.model())));
        if let (true, Some(leader)) = (self.coordinators.len() > 1, self.status.leader) {
            term::out(format!("  leader       {leader}"));
        }
        term::out("");
        term::out(format!(
            "  curl -N {}/chat/completions \\\n    -H 'Authorization: Bearer {}' \\\n    \
             -H 'Content-Type: application/json' \\\n    -d '{{\"model\":{},\"stream\":true,\n         \
             \"messages\":[{{\"role\":\"user\",\"content\":\"Hello!\"}}]}}'",
            self.endpoint(),
            self.api_key,
            serde_json::Value::from(self.model()),
        ));
        term::out("");
        let plans = self
            .deployment
            .replicas
            .iter()
            .filter_map(|r| r.plan.as_ref());
        let rows = plans.flat_map(|p| plan::rows(p, self.group)).collect();
        term::out(term::table(&plan::header(self.group), rows));
        term::out("");
        term::out("  what this key has used, and what it cost:");
        term::out(self.usage_line());
    }

    /// Asks for the tenant's own usage.
    fn usage_line(&self) -> String {
        format!(
            "  curl '{}/billing/v1/usage' -H 'Authorization: Bearer {}'",
            self.first(),
            self.api_key
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trireme_shared::api::LogReport;
    use trireme_shared::ids::{DeploymentId, Epoch};
    use trireme_shared::model::{Precision, RankShare, Span};
    use trireme_shared::plan::*;

    fn serving() -> Serving {
        let model = ModelRef {
            name: "smollm2".into(),
            source: "smollm2".into(),
            sha256: None,
        };
        let rank = |rank: u16, worker: u32, heads: Span| RankPlacement {
            share: RankShare {
                stage: Stage(0),
                rank: Rank(rank),
                stages: 1,
                ranks: 2,
                layers: Span::new(0, 30),
                kv_heads: heads,
                ffn: Span::new(0, 1024),
                vocab: Span::new(0, 100),
            },
            worker: WorkerId(worker),
            address: "127.0.0.1:5".into(),
            host: "h".into(),
            weight_bytes: 49_000_000,
        };
        let plan = ReplicaPlan {
            deployment: DeploymentId(1),
            replica: Replica(0),
            epoch: Epoch(1),
            model: model.clone(),
            tensor_parallel: 2,
            pipeline_parallel: 1,
            link: LinkPolicy::Auto,
            precision: Precision::default(),
            ranks: vec![rank(0, 2, Span::new(0, 2)), rank(1, 1, Span::new(2, 3))],
            kv_pages: 10,
            context: 100,
            nonce: [0; 16],
        };
        let deployment = DeploymentReport {
            id: DeploymentId(1),
            spec: DeploymentSpec {
                model,
                tensor_parallel: 2,
                pipeline_parallel: 1,
                replicas: 1,
                link: LinkPolicy::Auto,
                precision: Precision::default(),
            },
            replicas: vec![trireme_shared::api::ReplicaReport {
                replica: Replica(0),
                epoch: Some(Epoch(1)),
                ready: true,
                waiting_for: None,
                plan: Some(plan),
                ranks: vec![],
                stats: None,
            }],
        };
        Serving {
            coordinators: vec![
                CoordinatorFile {
                    id: CoordinatorId(1),
                    pid: 11,
                    http: "http://127.0.0.1:8080".into(),
                    control: "127.0.0.1:7400".into(),
                    admin_key: Some("sk-admin".into()),
                },
                CoordinatorFile {
                    id: CoordinatorId(2),
                    pid: 12,
                    http: "http://127.0.0.1:8081".into(),
                    control: "127.0.0.1:7401".into(),
                    admin_key: None,
                },
            ],
            status: StatusReport {
                cluster: "c".into(),
                version: "0".into(),
                leader: Some(CoordinatorId(2)),
                term: 1,
                commit: 1,
                log: LogReport::default(),
                stale: false,
                coordinators: vec![],
                workers: vec![],
                deployments: vec![],
            },
            deployment,
            api_key: "sk-tr".into(),
            group: 3,
        }
    }

    #[test]
    fn the_ready_file_names_everything_a_script_needs() {
        let file = serde_json::to_value(serving().ready_file()).unwrap();
        assert_eq!(
            file,
            serde_json::json!({
                "endpoint": "http://127.0.0.1:8080",
                "api_key": "sk-tr",
                "admin_key": "sk-admin",
                "model": "smollm2",
                "coordinators": [
                    {"id": 1, "pid": 11, "http": "http://127.0.0.1:8080", "control": "127.0.0.1:7400"},
                    {"id": 2, "pid": 12, "http": "http://127.0.0.1:8081", "control": "127.0.0.1:7401"},
                ],
                "workers": [
                    {"id": 2, "pid": 0, "replica": 0, "stage": 0, "rank": 0},
                    {"id": 1, "pid": 0, "replica": 0, "stage": 0, "rank": 1},
                ],
            })
        );
    }

    #[test]
    fn the_table_fits_80_columns_and_counts_query_heads() {
        let serving = serving();
        let plan = serving.deployment.replicas[0].plan.as_ref().unwrap();
        let table = term::table(&plan::header(3), plan::rows(plan, 3));
        assert!(
            table.lines().all(|line| line.chars().count() <= 80),
            "{table}"
        );
        assert!(table.contains("0-5") && table.contains("6-8"), "{table}");
    }
}
