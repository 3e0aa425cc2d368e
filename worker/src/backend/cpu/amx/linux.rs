//! AMX by inline assembly, since the intrinsics are not stable. (Intel SDM volume 1, chapter 18;
//! Linux, Documentation/arch/x86/xstate.rst.)

#![allow(
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    reason = "kernels are unsafe as a whole: their pointers cover what their docs say"
)]

use crate::backend::cpu::attention::HeadPages;
use crate::backend::cpu::attention_tiles::{self, Next, Query};
use crate::backend::cpu::bf16::{self, Pair, Room, To, Unit, Unpack};
use crate::backend::cpu::lanes::{Avx512, Sums16, WeightTile};
use crate::backend::cpu::matmul::{Inputs, Weights};
use crate::backend::cpu::pack::{BLOCK, Format, GROUP_TILES, TILE};
use crate::backend::cpu::quants::{self, Quant};
use crate::backend::cpu::rows::{Line, STRIP_ROWS};
use crate::backend::cpu::tiles::{self, Part, Products, Tiles, Unpacked};
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;
use std::sync::OnceLock;
use trireme_shared::model::ActivationFormat;

/// Whether the processor has tiles of bf16 and Linux lets this process use them. The first call asks,
/// for all threads.
pub(in super::super) fn available() -> bool {
    static GRANTED: OnceLock<bool> = OnceLock::new();
    *GRANTED.get_or_init(|| has_bf16_tiles() && request_permission())
}

/// `CPUID` leaf 7: EDX bits 22 (AMX-BF16) and 24 (AMX-TILE).
fn has_bf16_tiles() -> bool {
    const BOTH: u32 = 1 << 22 | 1 << 24;
    __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & BOTH == BOTH
}

/// Linux grants the tiles only where it has switched them on in XCR0, so that need not be read. It
/// refuses also where some thread's signal stack is too small for them.
fn request_permission() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and touches no memory of ours.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        )
    };
    answer == 0
}

/// This thread's tile registers, cut for [`Amx`] while this lives and free afterwards: a thread
/// that holds none has less to save when it is switched.
#[derive(Debug)]
pub(in super::super) struct TileConfig(PhantomData<*const ()>);

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// All eight tiles at their largest.
    const WHOLE: Self = Self {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
    };
    /// Register 5 has sixteen tokens' bf16 in a row, and register 7 a row for every two of them.
    const OF_ATTENTION: Self = {
        let mut shapes = Self::WHOLE;
        shapes.row_bytes[5] = 32;
        shapes.rows[7] = 8;
        shapes
    };
}

impl TileConfig {
    /// None where [`available`] says no.
    pub(in super::super) fn load() -> Option<Self> {
        static SHAPES: Shapes = Shapes::WHOLE;
        Self::of(&SHAPES)
    }

    fn of(shapes: &'static Shapes) -> Option<Self> {
        if !available() {
            return None;
        }
        // SAFETY: the instruction exists and is permitted; palette 1 has tiles of 16 rows of 64
        // bytes.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) shapes, options(nostack, preserves_flags));
        }
        Some(Self(PhantomData))
    }
}

/// The same, cut for [`Attention`].
#[derive(Debug)]
pub(in super::super) struct AttentionConfig(TileConfig);

impl AttentionConfig {
    /// None where [`available`] says no.
    pub(in super::super) fn load() -> Option<Self> {
        static SHAPES: Shapes = Shapes::OF_ATTENTION;
        TileConfig::of(&SHAPES).map(Self)
    }
}

impl Drop for TileConfig {
    fn drop(&mut self) {
        // SAFETY: a value exists only where the instruction does.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags)) }
    }
}

/// As `matmul::group_matmul`, of a quantised format.
///
/// # Safety
/// As there; `x` is in lines, and all rows of its last strip exist. The processor has what
/// `Isa::Amx` names.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in super::super) unsafe fn group_matmul(
    _: &TileConfig,
    format: Format,
    w: Weights,
    x: Inputs,
    out: *mut f32,
) {
    tiles::multiply::<Avx512, Amx>(&mut Amx, format, w, x, out);
}

/// As `matmul::group_matmul_wide`, of a quantised format.
///
/// # Safety
/// As [`group_matmul`]'s.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in super::super) unsafe fn group_matmul_wide(
    _: &TileConfig,
    format: Format,
    w: Weights,
    x: Inputs,
    segment: usize,
    out: *mut f64,
) {
    tiles::multiply_wide::<Avx512, Amx>(&mut Amx, format, w, x, segment, out);
}

/// As `bf16::multiply`.
///
/// # Safety
/// As there. The processor has what `Isa::Amx` names.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in super::super) unsafe fn multiply_bf16(
    _: &TileConfig,
    pair: Pair<'_>,
    room: &mut Room,
    to: To,
) {
    bf16::multiply::<Avx512, Amx>(&mut Amx, pair, room, to);
}

/// As `attention_tiles::attend`.
///
/// # Safety
/// As there. The processor has what `Isa::Amx` names.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in super::super) unsafe fn attend(
    _: &AttentionConfig,
    pages: &HeadPages,
    queries: &[Query],
    next: Option<Next>,
    room: &mut attention_tiles::Room,
) {
    attention_tiles::attend::<Avx512, Attention>(&mut Attention, pages, queries, next, room);
}

/// Writes one block of a tile of a format's weights in bf16.
pub(in super::super) fn unpacker(format: Format) -> Unpack {
    match format {
        Format::Twos => unpack::<quants::Twos>,
        Format::Threes => unpack::<quants::Threes>,
        Format::Fours => unpack::<quants::Fours>,
        Format::Nibbles => unpack::<quants::Nibbles>,
        Format::Levels => unpack::<quants::Levels>,
        Format::Fives => unpack::<quants::Fives>,
        Format::Sixes => unpack::<quants::Sixes>,
        Format::Bytes => unpack::<quants::Bytes>,
        Format::F16 | Format::Bf16 | Format::F32 => unreachable!("floats do not go by tiles"),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn unpack<Q: Quant>(from: *const u8, to: *mut WeightTile) {
    bf16::unpack::<Avx512, Q>(from, to);
}

/// Products of activations and weights, as many rounds as that, with operands in registers: how many
/// there were.
pub(in super::super) fn products(
    _: &TileConfig,
    activations: ActivationFormat,
    rounds: usize,
) -> usize {
    let part = match activations {
        ActivationFormat::Int16 => Part::Both,
        ActivationFormat::Int8 | ActivationFormat::Bf16 => Part::Fine,
    };
    // Numbers such as those that are multiplied: of zeroes it makes more a second.
    let lines = std::array::from_fn::<_, STRIP_ROWS, _>(|row| {
        Line(std::array::from_fn(|at| {
            0x4000 + (row * 31 + at * 7) as u16 % 256
        }))
    });
    let lines = lines.as_ptr();
    let unit = &mut Amx;
    // SAFETY: a `TileConfig` exists, lines of sixteen rows are there, and as many are a tile of weights.
    unsafe {
        unit.take(Part::Coarse, lines, 1);
        unit.take(Part::Fine, lines, 1);
        for slot in 0..GROUP_TILES {
            unit.hold(slot, lines.cast());
        }
        for _ in 0..rounds {
            for slot in 0..GROUP_TILES {
                Tiles::multiply(unit, slot, part, slot % 2);
            }
        }
    }
    rounds * GROUP_TILES * STRIP_ROWS * TILE * BLOCK
}

/// Between `TileConfig::load` and its drop. To `tiles`, products are in registers 0 and 1, coarse lines in 2, fine
/// ones in 3, and the slots' weights in 4 to 7; to `bf16`, sums are in 0 to 3, two slots' weights in 4 and 5,
/// two strips in 6 and 7. Nothing else on this thread uses them, nor both at a time. No block says
/// `nomem`: what is read and written here is memory that the compiler otherwise believes untouched.
struct Amx;

macro_rules! load {
    ($tile:literal, $from:expr, $stride:expr) => {
        asm!(
            concat!("tileloadd ", $tile, ", [{from} + {stride}*1]"),
            from = in(reg) $from,
            stride = in(reg) $stride,
            options(nostack, preserves_flags),
        )
    };
}

/// The same of whole lines one behind the other that are not needed again soon, and are to leave what is to
/// the first-level cache.
macro_rules! load_passing {
    ($tile:literal, $from:expr) => {
        asm!(
            concat!("tileloaddt1 ", $tile, ", [{from} + {stride}*1]"),
            from = in(reg) $from,
            stride = in(reg) 64usize,
            options(nostack, preserves_flags),
        )
    };
}

macro_rules! multiply {
    ($made:literal, $weights:literal, $part:expr) => {{
        asm!(
            concat!("tilezero ", $made),
            options(nostack, preserves_flags)
        );
        if $part != Part::Fine {
            add!($made, "tmm2", $weights);
        }
        if $part != Part::Coarse {
            add!($made, "tmm3", $weights);
        }
    }};
}

macro_rules! add {
    ($made:literal, $lines:literal, $weights:literal) => {
        asm!(
            concat!("tdpbf16ps ", $made, ", ", $lines, ", ", $weights),
            options(nostack, preserves_flags),
        )
    };
}

macro_rules! store {
    ($made:literal, $to:expr) => {
        asm!(
            concat!("tilestored [{to} + {line}*1], ", $made),
            to = in(reg) $to,
            line = in(reg) 64usize,
            options(nostack, preserves_flags),
        )
    };
}

impl Tiles for Amx {
    #[inline(always)]
    unsafe fn hold(&mut self, slot: usize, weights: *const Unpacked) {
        match slot {
            0 => load!("tmm4", weights, 64usize),
            1 => load!("tmm5", weights, 64usize),
            2 => load!("tmm6", weights, 64usize),
            _ => load!("tmm7", weights, 64usize),
        }
    }

    #[inline(always)]
    unsafe fn take(&mut self, part: Part, lines: *const Line, pitch: usize) {
        let stride = pitch * size_of::<Line>();
        match part {
            Part::Coarse => load!("tmm2", lines, stride),
            Part::Fine | Part::Both => load!("tmm3", lines, stride),
        }
    }

    #[inline(always)]
    unsafe fn multiply(&mut self, slot: usize, part: Part, made: usize) {
        match (made, slot) {
            (0, 0) => multiply!("tmm0", "tmm4", part),
            (0, 1) => multiply!("tmm0", "tmm5", part),
            (0, 2) => multiply!("tmm0", "tmm6", part),
            (0, _) => multiply!("tmm0", "tmm7", part),
            (_, 0) => multiply!("tmm1", "tmm4", part),
            (_, 1) => multiply!("tmm1", "tmm5", part),
            (_, 2) => multiply!("tmm1", "tmm6", part),
            (_, _) => multiply!("tmm1", "tmm7", part),
        }
    }

    #[inline(always)]
    unsafe fn store(&mut self, made: usize, to: *mut Products) {
        match made {
            0 => store!("tmm0", to),
            _ => store!("tmm1", to),
        }
    }
}

impl Unit for Amx {
    #[inline(always)]
    unsafe fn zero(&mut self) {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            options(nostack, preserves_flags)
        );
    }

    #[inline(always)]
    unsafe fn take_weights(&mut self, slot: usize, from: *const WeightTile) {
        match slot {
            0 => load!("tmm4", from, 64usize),
            _ => load!("tmm5", from, 64usize),
        }
    }

    #[inline(always)]
    unsafe fn take_rows(&mut self, at: usize, from: *const Line) {
        match at {
            0 => load!("tmm6", from, 64usize),
            _ => load!("tmm7", from, 64usize),
        }
    }

    #[inline(always)]
    unsafe fn take_passing_rows(&mut self, at: usize, from: *const Line) {
        match at {
            0 => load_passing!("tmm6", from),
            _ => load_passing!("tmm7", from),
        }
    }

    #[inline(always)]
    unsafe fn multiply(&mut self, slot: usize, at: usize) {
        match (slot, at) {
            (0, 0) => add!("tmm0", "tmm4", "tmm6"),
            (0, _) => add!("tmm1", "tmm4", "tmm7"),
            (_, 0) => add!("tmm2", "tmm5", "tmm6"),
            (_, _) => add!("tmm3", "tmm5", "tmm7"),
        }
    }

    #[inline(always)]
    unsafe fn load(&mut self, slot: usize, at: usize, from: *const Sums16) {
        match (slot, at) {
            (0, 0) => load!("tmm0", from, 64usize),
            (0, _) => load!("tmm1", from, 64usize),
            (_, 0) => load!("tmm2", from, 64usize),
            (_, _) => load!("tmm3", from, 64usize),
        }
    }

    #[inline(always)]
    unsafe fn store(&mut self, slot: usize, at: usize, to: *mut Sums16) {
        match (slot, at) {
            (0, 0) => store!("tmm0", to),
            (0, _) => store!("tmm1", to),
            (_, 0) => store!("tmm2", to),
            (_, _) => store!("tmm3", to),
        }
    }
}

/// Between `AttentionConfig::load` and its drop: sums are in registers 0 to 3, keys in 4, values in 5, queries in
/// 6 and chances in 7. Otherwise as [`Amx`].
struct Attention;

impl attention_tiles::Unit for Attention {
    #[inline(always)]
    unsafe fn zero(&mut self) {
        Unit::zero(&mut Amx);
    }

    #[inline(always)]
    unsafe fn take_queries(&mut self, from: *const Line) {
        load!("tmm6", from, 64usize);
    }

    #[inline(always)]
    unsafe fn take_keys(&mut self, from: *const u16, pitch: usize) {
        load!("tmm4", from, pitch);
    }

    #[inline(always)]
    unsafe fn score(&mut self, slot: usize) {
        match slot {
            0 => add!("tmm0", "tmm4", "tmm6"),
            1 => add!("tmm1", "tmm4", "tmm6"),
            2 => add!("tmm2", "tmm4", "tmm6"),
            _ => add!("tmm3", "tmm4", "tmm6"),
        }
    }

    #[inline(always)]
    unsafe fn take_chances(&mut self, from: *const Line) {
        load!("tmm7", from, 64usize);
    }

    #[inline(always)]
    unsafe fn take_values(&mut self, from: *const u16) {
        load!("tmm5", from, 32usize);
    }

    #[inline(always)]
    unsafe fn weigh(&mut self, slot: usize) {
        match slot {
            0 => add!("tmm0", "tmm5", "tmm7"),
            1 => add!("tmm1", "tmm5", "tmm7"),
            2 => add!("tmm2", "tmm5", "tmm7"),
            _ => add!("tmm3", "tmm5", "tmm7"),
        }
    }

    #[inline(always)]
    unsafe fn load(&mut self, slot: usize, from: *const Sums16) {
        Unit::load(&mut Amx, slot / 2, slot % 2, from);
    }

    #[inline(always)]
    unsafe fn store(&mut self, slot: usize, to: *mut Sums16) {
        Unit::store(&mut Amx, slot / 2, slot % 2, to);
    }
}
