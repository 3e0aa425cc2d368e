//! This gateway's life in the state, under which it reports what its requests used.
//!
//! Keeps true: a life is opened when the first request needs one, and another when the state has ended
//! it; a report that was refused for that is sent again under the new one.

use crate::raft::group::{Group, GroupError};
use crate::state::{Command, Outcome, Refusal, Report};
use std::sync::Arc;
use tokio::sync::Mutex;
use trireme_shared::ids::GatewayLife;

/// Cheap to clone; all clones share one life.
#[derive(Clone)]
pub struct Life {
    group: Group,
    current: Arc<Mutex<Option<GatewayLife>>>,
}

impl Life {
    pub fn new(group: Group) -> Self {
        Self {
            group,
            current: Arc::default(),
        }
    }

    /// The group's state and what it is asked by.
    pub fn group(&self) -> &Group {
        &self.group
    }

    async fn open(&self) -> Result<GatewayLife, GroupError> {
        let mut current = self.current.lock().await;
        if let Some(life) = *current {
            return Ok(life);
        }
        let coordinator = self.group.own();
        let opened = self.group.propose(Command::OpenGateway { coordinator });
        match opened.await? {
            Outcome::Gateway(life) => Ok(*current.insert(life)),
            other => {
                tracing::warn!(?other, "the gateway's life was not opened");
                Err(GroupError::Stopped)
            }
        }
    }

    async fn forget(&self, ended: GatewayLife) {
        let mut current = self.current.lock().await;
        if *current == Some(ended) {
            *current = None;
        }
    }

    /// Makes a report durable. Its life is set here.
    pub async fn report(&self, mut report: Report) -> Result<Outcome, GroupError> {
        loop {
            report.life = self.open().await?;
            let command = Command::Report {
                report: report.clone(),
            };
            match self.group.propose(command).await? {
                Outcome::Refused(Refusal::GatewayGone(ended)) => self.forget(ended).await,
                outcome => return Ok(outcome),
            }
        }
    }
}
