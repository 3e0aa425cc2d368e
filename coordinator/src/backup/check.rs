//! Checks a plain backup while its bytes pass by.

use super::BackupError;
use crate::raft::storage::snapshot_format::Decoder;

/// Feed it every byte, then `finish`.
#[derive(Default)]
pub struct Check(Decoder);

impl Check {
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), BackupError> {
        while !bytes.is_empty() {
            let taken = self.0.feed(bytes)?;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    pub fn finish(self) -> Result<(), BackupError> {
        Ok(self.0.finish()?)
    }
}
