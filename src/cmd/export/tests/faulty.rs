//! A store whose calls fail, as drawn from a seed: before they took effect, or after.

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[derive(Debug)]
pub struct Plan {
    state: AtomicU64,
    healed: AtomicBool,
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        Self {
            state: AtomicU64::new(seed),
            healed: AtomicBool::new(false),
        }
    }

    /// A number below `below`: Knuth's MMIX generator, its upper bits.
    pub fn draw(&self, below: u64) -> u64 {
        let next = |x: u64| {
            x.wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407)
        };
        let state = next(self.state.load(Ordering::Relaxed));
        self.state.store(state, Ordering::Relaxed);
        (state >> 33) % below
    }

    /// From now on nothing fails.
    pub fn heal(&self) {
        self.healed.store(true, Ordering::Relaxed);
    }

    fn fails(&self) -> bool {
        !self.healed.load(Ordering::Relaxed) && self.draw(4) == 0
    }

    fn may(&self) -> Result<()> {
        match self.fails() {
            true => Err(Error::Generic {
                store: "faulty",
                source: "planned".into(),
            }),
            false => Ok(()),
        }
    }
}

#[derive(Debug)]
pub struct Faulty {
    inner: Arc<InMemory>,
    plan: Arc<Plan>,
}

impl Faulty {
    pub fn new(inner: Arc<InMemory>, plan: Arc<Plan>) -> Self {
        Self { inner, plan }
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        self.plan.may()?;
        let put = self.inner.put_opts(location, payload, opts).await;
        self.plan.may()?;
        put
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.plan.may()?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        // A listing may break off after some of it came.
        let broken = self.plan.may().err().map(Err);
        let whole = broken.is_none();
        let shown = self.plan.draw(3) as usize;
        let all = self.inner.list(prefix);
        let some = all.take(if whole { usize::MAX } else { shown });
        some.chain(stream::iter(broken)).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
