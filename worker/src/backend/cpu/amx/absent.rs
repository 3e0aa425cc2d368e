//! What `linux` has, where it cannot be.

use crate::backend::cpu::attention::HeadPages;
use crate::backend::cpu::attention_tiles::{self, Next, Query};
use crate::backend::cpu::bf16::{Pair, Room, To, Unpack};
use crate::backend::cpu::matmul::{Inputs, Weights};
use crate::backend::cpu::pack::Format;
use trireme_shared::model::ActivationFormat;

pub(in super::super) fn available() -> bool {
    false
}

#[derive(Debug)]
pub(in super::super) enum TileConfig {}

impl TileConfig {
    pub(in super::super) fn load() -> Option<Self> {
        None
    }
}

pub(in super::super) unsafe fn group_matmul(
    tiles: &TileConfig,
    _: Format,
    _: Weights,
    _: Inputs,
    _: *mut f32,
) {
    match *tiles {}
}

pub(in super::super) unsafe fn group_matmul_wide(
    tiles: &TileConfig,
    _: Format,
    _: Weights,
    _: Inputs,
    _: usize,
    _: *mut f64,
) {
    match *tiles {}
}

pub(in super::super) unsafe fn multiply_bf16(tiles: &TileConfig, _: Pair<'_>, _: &mut Room, _: To) {
    match *tiles {}
}

#[derive(Debug)]
pub(in super::super) enum AttentionConfig {}

impl AttentionConfig {
    pub(in super::super) fn load() -> Option<Self> {
        None
    }
}

pub(in super::super) unsafe fn attend(
    tiles: &AttentionConfig,
    _: &HeadPages,
    _: &[Query],
    _: Option<Next>,
    _: &mut attention_tiles::Room,
) {
    match *tiles {}
}

pub(in super::super) fn unpacker(_: Format) -> Unpack {
    unreachable!("nobody asks where there are no tiles")
}

pub(in super::super) fn products(tiles: &TileConfig, _: ActivationFormat, _: usize) -> usize {
    match *tiles {}
}
