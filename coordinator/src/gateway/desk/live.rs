//! Requests under way, and what is told of them while they stream.
//!
//! Keeps true: what is told at a look is what was counted one look earlier, so that it has reached the
//! client by then even if this process dies now; after a crash a request is billed for what was delivered
//! but for the last two looks, a second at most.

use crate::fleet::work::WorkLog;
use crate::state::{Counts, Progress};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use trireme_shared::ids::{KeyId, RequestId, TenantId};

/// Whose request it is, and which.
#[derive(Clone, Debug)]
pub struct About {
    /// Drawn by this gateway.
    pub request: RequestId,
    /// The caller's own id for it.
    pub caller_id: RequestId,
    pub tenant: TenantId,
    pub key: KeyId,
    pub model: String,
    /// Milliseconds since 1970.
    pub began_at_ms: u64,
    pub idempotency: Option<[u8; 32]>,
}

/// One request's counts, as far as they are delivered.
#[derive(Debug)]
pub struct Live {
    pub about: About,
    counts: Mutex<Counts>,
    work: WorkLog,
}

impl Live {
    pub fn new(about: About, work: WorkLog) -> Self {
        Self {
            about,
            counts: Mutex::default(),
            work,
        }
    }

    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn count(&self, more: impl FnOnce(&mut Counts)) {
        more(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What the group is told, at those counts.
    pub fn progress(&self, counts: Counts) -> Progress {
        let about = &self.about;
        Progress {
            request: about.request.clone(),
            caller_id: Some(about.caller_id.clone()),
            tenant: about.tenant,
            key: about.key,
            model: about.model.clone(),
            began_at_ms: about.began_at_ms,
            idempotency: about.idempotency,
            counts,
            work: self.work.so_far(),
        }
    }
}

/// Those that are looked at. A request that ended is forgotten.
#[derive(Debug, Default)]
pub struct Watch {
    all: Vec<Watched>,
}

#[derive(Debug)]
struct Watched {
    live: Weak<Live>,
    /// At the last look.
    seen: Counts,
    told: Counts,
}

impl Watch {
    pub fn add(&mut self, live: &Arc<Live>) {
        self.all.push(Watched {
            live: Arc::downgrade(live),
            seen: Counts::default(),
            told: Counts::default(),
        });
    }

    /// What is to be told now.
    pub fn look(&mut self) -> Vec<Progress> {
        let mut news = Vec::new();
        self.all.retain_mut(|watched| {
            let Some(live) = watched.live.upgrade() else {
                return false;
            };
            let certain = std::mem::replace(&mut watched.seen, live.counts());
            if certain != watched.told && certain.completion.0 > 0 {
                watched.told = certain;
                news.push(live.progress(certain));
            }
            true
        });
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trireme_shared::ids::Tokens;

    #[test]
    fn what_is_told_was_there_a_look_ago() {
        let about = About {
            request: RequestId::random(),
            caller_id: RequestId::random(),
            tenant: TenantId(1),
            key: KeyId(1),
            model: "m".into(),
            began_at_ms: 1,
            idempotency: None,
        };
        let live = Arc::new(Live::new(about, WorkLog::default()));
        let mut watch = Watch::default();
        watch.add(&live);
        live.count(|c| c.prompt = Tokens(5));
        assert!(watch.look().is_empty());
        // A prompt alone is nothing that a client got.
        assert!(watch.look().is_empty());
        live.count(|c| c.completion = Tokens(3));
        assert!(watch.look().is_empty());
        live.count(|c| c.completion = Tokens(9));
        let told: Vec<_> = watch.look().into_iter().map(|p| p.counts).collect();
        assert_eq!(told, [Counts::new(5, 0, 3)]);
        let told: Vec<_> = watch.look().into_iter().map(|p| p.counts).collect();
        assert_eq!(told, [Counts::new(5, 0, 9)]);
        assert!(watch.look().is_empty());
        drop(live);
        assert!(watch.look().is_empty());
        assert!(watch.all.is_empty());
    }
}
