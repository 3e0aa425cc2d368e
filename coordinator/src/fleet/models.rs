//! Opening a deployment's model, to know its shape: at `deploy`, and again after a restart.

use super::reconcile::Event;
use super::{Fleet, FleetError};
use crate::state::Deployment;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use trireme_shared::ids::{DeploymentId, Epoch, Replica};
use trireme_shared::limits;
use trireme_shared::model::Manifest;
use trireme_shared::plan::ModelRef;
use trireme_shared::source::{self, ResolveOptions};

/// A model whose headers were read and checked.
pub(super) struct OpenedModel {
    pub(super) manifest: Manifest,
    /// Known where it was checked.
    pub(super) sha256: Option<String>,
}

/// Finds the model (fetching it if needed) and reads its headers, off the runtime's threads.
pub(super) async fn open(
    model: &ModelRef,
    cache_dir: Option<PathBuf>,
) -> Result<OpenedModel, FleetError> {
    let source = model.source.clone();
    let options = ResolveOptions {
        cache_dir,
        sha256: model.sha256.clone(),
        ..ResolveOptions::default()
    };
    // Whoever waits may give up: on a shutdown, or when the client is gone.
    let _given_up = options.cancel.on_drop();
    let work = move || {
        let resolved = source::resolve(&source, &options, &|_| {}).map_err(|e| e.to_string())?;
        let manifest = Manifest::open(&resolved.path).map_err(|e| e.to_string())?;
        Ok(OpenedModel {
            manifest,
            sha256: resolved.sha256,
        })
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(opened) => opened.map_err(FleetError::Refused),
        Err(_) => Err(FleetError::Refused(
            "reading the model failed in an unforeseen way: see the log".into(),
        )),
    }
}

impl Fleet {
    /// Takes up the journal's deployments, each in a task of its own: a model that must be fetched
    /// holds up no other.
    pub(super) fn restore_deployments(&self, shutdown: &CancellationToken) {
        let deployments: Vec<Deployment> = self
            .shared
            .journal
            .read(|s| s.deployments().cloned().collect());
        for deployment in deployments {
            let (fleet, shutdown) = (self.clone(), shutdown.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = fleet.restore(deployment) => {}
                }
            });
        }
    }

    async fn restore(&self, deployment: Deployment) {
        let (id, spec) = (deployment.id, deployment.spec);
        self.feed(Event::ModelUnavailable {
            id,
            spec: spec.clone(),
            reason: "its model to be opened".into(),
        });
        loop {
            let opened = open(&spec.model, self.shared.cache_dir.clone()).await;
            let current = |s: &crate::state::State| s.deployment(id).map(|d| d.spec == spec);
            if self.shared.journal.read(current) != Some(true) {
                return; // Replaced meanwhile: `deploy` told the core.
            }
            match opened {
                Ok(opened) => {
                    self.feed(Event::Deployed {
                        id,
                        spec,
                        manifest: Arc::new(opened.manifest),
                        epochs: self.epochs(id),
                    });
                    return;
                }
                Err(error) => {
                    let reason = format!("its model to be opened: {error}");
                    tracing::warn!(deployment = %id, %error, "the model cannot be opened; trying again");
                    let spec = spec.clone();
                    self.feed(Event::ModelUnavailable { id, spec, reason });
                }
            }
            tokio::time::sleep(limits::MODEL_RETRY_INTERVAL).await;
        }
    }

    /// The epochs of the plans that the journal holds.
    pub(super) fn epochs(&self, id: DeploymentId) -> BTreeMap<Replica, Epoch> {
        self.shared.journal.read(|s| {
            s.plans()
                .filter(|p| p.deployment == id)
                .map(|p| (p.replica, p.epoch))
                .collect()
        })
    }
}
