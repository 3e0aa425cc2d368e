//! Where files lie: a folder, or a prefix of a bucket. Keeps true: a file is created whole, is on disk when
//! `create` says so, and no file is ever replaced.

use super::chain::{Fault, parse_name};
use super::s3;
use crate::failure::Failure;
use anyhow::Result;
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use std::fmt;
use std::sync::Arc;
use tokio::runtime::{Builder, Runtime};
use trireme_shared::ids::SettlementSeq;
use trireme_shared::limits;

pub struct Place {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    runtime: Runtime,
    /// As the user named it.
    named: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.named)
    }
}

impl Place {
    /// `to` is a folder, which is made where it is not there, or `s3://BUCKET/PREFIX`.
    pub fn open(to: &str) -> Result<Self> {
        let unusable = |error: Error| {
            let next = "name a folder, or s3://BUCKET/PREFIX with the AWS_* variables set";
            Failure::usage(format!("cannot export to {to}"), next).because(error)
        };
        let Some(bucket) = to.strip_prefix("s3://") else {
            if to.contains("://") {
                let next = "name a folder, or s3://BUCKET/PREFIX";
                return Err(Failure::usage(format!("cannot export to {to}"), next).into());
            }
            std::fs::create_dir_all(to).map_err(|error| {
                let next = "name a folder that can be written to";
                Failure::new(format!("cannot make the folder {to}"), next).because(error)
            })?;
            let folder = LocalFileSystem::new_with_prefix(to).map_err(unusable)?;
            return Self::new(Arc::new(folder.with_fsync(true)), Path::default(), to);
        };
        let (bucket, prefix) = bucket.split_once('/').unwrap_or((bucket, ""));
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_http_connector(s3::Connector)
            .build()
            .map_err(unusable)?;
        let prefix = Path::parse(prefix).map_err(|error| unusable(error.into()))?;
        Self::new(Arc::new(store), prefix, to)
    }

    pub fn new(store: Arc<dyn ObjectStore>, prefix: Path, named: &str) -> Result<Self> {
        Ok(Self {
            store,
            prefix,
            runtime: Builder::new_current_thread().enable_all().build()?,
            named: named.to_owned(),
        })
    }

    /// The number in the name of the newest file. Files of another format are refused: two chains
    /// would hold everything twice.
    pub fn newest(&self, extension: &str) -> Result<Option<SettlementSeq>, Fault> {
        let prefix = (!self.prefix.as_ref().is_empty()).then_some(&self.prefix);
        let mut newest = None;
        let mut other = None;
        let listing = async {
            let mut files = self.store.list(prefix);
            while let Some(file) = files.try_next().await? {
                let name = file.location.filename().unwrap_or_default();
                let ours = file.location == self.path(name);
                match parse_name(name).filter(|_| ours) {
                    Some((first, same)) if same == extension => newest = newest.max(Some(first)),
                    Some(_) => other = Some(name.to_owned()),
                    None => {}
                }
            }
            Ok(())
        };
        self.runtime.block_on(listing).map_err(|e| self.fault(e))?;
        match other {
            None => Ok(newest),
            Some(name) => {
                let what = format!("{self} holds files of another format ({name})");
                let next = "export each format to a destination of its own";
                Err(Fault::Lasting(Failure::new(what, next).into()))
            }
        }
    }

    pub fn read(&self, name: &str) -> Result<Bytes, Fault> {
        let path = self.path(name);
        let reading = async {
            let found = self.store.get(&path).await?;
            match found.meta.size <= limits::EXPORT_FILE_BYTES_MAX {
                true => found.bytes().await.map(Some),
                false => Ok(None),
            }
        };
        let read = self.runtime.block_on(reading).map_err(|e| self.fault(e))?;
        read.ok_or_else(|| Fault::Lasting(super::damaged(name, "it is too large")))
    }

    /// Creates a file; false where there is one of that name.
    pub fn create(&self, name: &str, bytes: Vec<u8>) -> Result<bool, Fault> {
        let options = PutOptions::from(PutMode::Create);
        let path = self.path(name);
        let creating = self.store.put_opts(&path, bytes.into(), options);
        match self.runtime.block_on(creating) {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(self.fault(error)),
        }
    }

    fn path(&self, name: &str) -> Path {
        self.prefix.clone().join(name)
    }

    fn fault(&self, error: Error) -> Fault {
        let denied = matches!(
            error,
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. }
        );
        let next = match denied {
            true => "see that these credentials may list, read and create files there",
            false => "see that it can be reached and has room, then say the same again: it goes on",
        };
        let error = Failure::new(format!("cannot export to {self}"), next).because(error);
        match denied {
            true => Fault::Lasting(error),
            false => Fault::Passing(error),
        }
    }
}
