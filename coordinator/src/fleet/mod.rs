//! Drives workers to the plan, and carries requests to drivers.

pub mod dispatch;

use crate::state::journal::JournalError;
use trireme_shared::api::{DeploymentReport, StatusReport, TokenCreated, TokenRequest};
use trireme_shared::ids::DeploymentId;
use trireme_shared::plan::DeploymentSpec;
use trireme_shared::wire::control::EngineStats;

/// The fleet as the gateway sees it. Cheap to clone.
#[derive(Clone)]
pub struct Fleet {}

/// Why an administrative act was refused; the text tells the user what to do.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Fleet {
    pub fn status(&self) -> StatusReport {
        unreachable!()
    }
    /// A token has come through every stage of at least one replica, recently.
    pub fn is_ready(&self, _deployment: DeploymentId) -> bool {
        false
    }
    /// Counters of each replica's driver, for `/metrics`.
    pub fn engine_stats(&self) -> Vec<(DeploymentId, u16, EngineStats)> {
        Vec::new()
    }
    /// Creates or replaces the deployment of that model name. Opens the model to check the split.
    pub async fn deploy(&self, _spec: DeploymentSpec) -> Result<DeploymentReport, FleetError> {
        unreachable!()
    }
    pub async fn create_token(&self, _request: TokenRequest) -> Result<TokenCreated, FleetError> {
        unreachable!()
    }
}
