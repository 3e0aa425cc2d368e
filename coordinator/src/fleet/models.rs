//! Opening a deployment's model, to know its shape: at `deploy`, and on every other coordinator, or
//! after a restart, once the state tells of it.

use super::reconcile::Event;
use super::{Fleet, FleetError};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use trireme_shared::ids::DeploymentId;
use trireme_shared::limits;
use trireme_shared::model::Manifest;
use trireme_shared::plan::{DeploymentSpec, ModelRef};
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
    /// The model of a deployment that is being put, opened already.
    pub(super) fn at_hand(&self, model: &ModelRef) -> Option<Arc<Manifest>> {
        let opened = self.shared.opened.lock();
        let opened = opened.unwrap_or_else(PoisonError::into_inner);
        let found = opened.iter().find(|(of, _)| of == model);
        found.map(|(_, manifest)| Arc::clone(manifest))
    }

    /// Keeps an opened model at hand while the answer lives.
    pub(super) fn keep_at_hand(&self, model: ModelRef, manifest: Manifest) -> AtHand<'_> {
        let opened = &self.shared.opened;
        let manifest = Arc::new(manifest);
        let mut all = opened.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((model, Arc::clone(&manifest)));
        AtHand { opened, manifest }
    }

    /// Opens a deployment's model in a task of its own: one that must be fetched holds up no other.
    pub(super) fn open_in_background(&self, id: DeploymentId, spec: DeploymentSpec) {
        let fleet = self.clone();
        tokio::spawn(async move {
            let stop = fleet.shared.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = fleet.open_until_done(id, spec) => {}
            }
        });
    }

    /// Tries until the model is open or the deployment is another one.
    async fn open_until_done(&self, id: DeploymentId, spec: DeploymentSpec) {
        loop {
            let opened = open(&spec.model, self.shared.cache_dir.clone()).await;
            let current = |s: &crate::state::State| s.deployment(id).map(|d| d.spec == spec);
            if self.shared.group.read(current) != Some(true) {
                return;
            }
            match opened {
                Ok(opened) => {
                    let manifest = Arc::new(opened.manifest);
                    return self.feed(Event::ModelOpened { id, spec, manifest });
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
}

/// Models opened by those who put them, so that nobody opens them twice.
pub(super) type OpenedModels = Mutex<Vec<(ModelRef, Arc<Manifest>)>>;

/// Takes the model from the hand when it is dropped.
pub(super) struct AtHand<'a> {
    opened: &'a OpenedModels,
    manifest: Arc<Manifest>,
}

impl Drop for AtHand<'_> {
    fn drop(&mut self) {
        let mut all = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(_, manifest)| !Arc::ptr_eq(manifest, &self.manifest));
    }
}
