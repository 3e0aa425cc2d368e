//! The seam to the disk: a flat folder of files. `Folder` is the real one; the simulator's tears and
//! loses what was not synced.

use std::io;

/// A flat folder of files, of one owner. Names are plain file names. Nothing is durable before the
/// call that says so returns. A disk writes sectors of 512 bytes wholly or not at all.
pub trait Disk {
    /// Names of all files, in order.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Bytes of the file (preallocated ones included).
    fn len(&self, name: &str) -> io::Result<u64>;

    /// Reads from `offset` until `buffer` is full or the file ends; gives the bytes read.
    fn read(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Makes an empty file, or empties the one there is, of `size` zero bytes. The file and its
    /// zeros are durable on return.
    fn create(&mut self, name: &str, size: u64) -> io::Result<()>;

    /// A file of `size` bytes is likely to be created soon: a disk may make its zeros meanwhile, so that
    /// `create` need not wait for them.
    fn prepare(&mut self, _size: u64) {}

    /// Writes at `offset`; the file grows if need be. Durable only after `sync`.
    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes all earlier writes to the file durable (`fdatasync`). After an error, what was not
    /// durable before may never be, even if a later `sync` succeeds.
    fn sync(&mut self, name: &str) -> io::Result<()>;

    /// Replaces `to` by `from`; durable on return.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Removes the file; durable on return. A missing file is no error.
    fn remove(&mut self, name: &str) -> io::Result<()>;

    /// What to call the file in a message to the user: its whole path, where there is one.
    fn place(&self, name: &str) -> String {
        name.to_owned()
    }
}
