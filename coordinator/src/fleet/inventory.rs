//! Keeps in the state what each worker last said it offers, so that an administrator sees it of one that
//! is away, at any coordinator.
//!
//! What it keeps true: every coordinator hears every worker's hello, and the leader alone writes it down,
//! where it is new; a leader that comes to office writes down what the last one could not.

use super::Fleet;
use crate::state::{Command, Outcome};
use trireme_shared::ids::WorkerId;
use trireme_shared::wire::control::Inventory;

impl Fleet {
    /// Does not end.
    pub(super) async fn keep_inventories(&self) {
        let group = &self.shared.group;
        let mut leadership = group.leadership();
        loop {
            if leadership.borrow_and_update().is_me {
                for (worker, inventory) in self.unrecorded() {
                    let command = Command::PutInventory { worker, inventory };
                    match group.propose(command).await {
                        Ok(Outcome::Refused(why)) => tracing::debug!(%worker, %why, "not noted"),
                        Ok(_) => {}
                        Err(error) => tracing::warn!(%worker, %error, "its hello was not noted"),
                    }
                }
            }
            tokio::select! {
                () = self.shared.hello.notified() => {}
                changed = leadership.changed() => if changed.is_err() {
                    // The group has ended, and with it the coordinator.
                    return std::future::pending().await;
                }
            }
        }
    }

    /// What connected members of the cluster said, where the state has another word or none.
    fn unrecorded(&self) -> Vec<(WorkerId, Inventory)> {
        let driven = self.lock();
        let connected = driven.inventories.iter();
        let connected = connected.filter(|(id, _)| driven.lines.contains_key(id));
        self.shared.group.read(|s| {
            let new = connected.filter(|(id, (_, said))| {
                let stored = s.worker(**id).map(|w| w.inventory.as_ref());
                stored.is_some_and(|stored| stored != Some(said))
            });
            new.map(|(id, (_, said))| (*id, said.clone())).collect()
        })
    }
}
