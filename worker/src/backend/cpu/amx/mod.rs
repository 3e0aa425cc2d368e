//! AMX, Intel's tile registers, for products of several rows. A [`TileConfig`] is the proof that
//! this thread may use them; where there is no AMX, no value of that type exists.

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod absent;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod linux;

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(super) use absent::*;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) use linux::*;
