//! AMX by inline assembly, since the intrinsics are not stable. (Intel SDM volume 1, chapter 18;
//! Linux, Documentation/arch/x86/xstate.rst.)

#![allow(
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    reason = "kernels are unsafe as a whole: their pointers cover what their docs say"
)]

use crate::backend::cpu::lanes::Avx512;
use crate::backend::cpu::matmul::{Inputs, Weights};
use crate::backend::cpu::pack::{BLOCK, Format, GROUP_TILES, TILE};
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

impl TileConfig {
    /// None where [`available`] says no.
    pub(in super::super) fn load() -> Option<Self> {
        /// All eight tiles at their largest.
        static SHAPES: Shapes = Shapes {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
            rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
        };
        if !available() {
            return None;
        }
        // SAFETY: the instruction exists and is permitted; palette 1 has tiles of 16 rows of 64
        // bytes.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack, preserves_flags));
        }
        Some(Self(PhantomData))
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

/// Products of activations and weights, as many rounds as that, with operands in registers: how many
/// there were.
pub(in super::super) fn products(
    _: &TileConfig,
    activations: ActivationFormat,
    rounds: usize,
) -> usize {
    let part = match activations {
        ActivationFormat::Int16 => Part::Both,
        ActivationFormat::Int8 => Part::Fine,
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
                unit.multiply(slot, part, slot % 2);
            }
        }
    }
    rounds * GROUP_TILES * STRIP_ROWS * TILE * BLOCK
}

/// Between `TileConfig::load` and its drop. Products are in registers 0 and 1, coarse lines in 2, fine
/// ones in 3, and the slots' weights in 4 to 7: nothing else on this thread uses them. No block says
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
