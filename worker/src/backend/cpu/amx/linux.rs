//! AMX by inline assembly, since the intrinsics are not stable. (Intel SDM volume 1, chapter 18;
//! Linux, Documentation/arch/x86/xstate.rst.)

#![allow(
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    reason = "kernels are unsafe as a whole: their pointers cover what their docs say"
)]

use crate::backend::cpu::lanes::Avx512;
use crate::backend::cpu::matmul::{Inputs, Weights};
use crate::backend::cpu::pack::Format;
use crate::backend::cpu::tiles::{self, Products, Tiles, Unpacked};
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Whether the processor has int8 tiles and Linux lets this process use them. The first call asks,
/// for all threads.
pub(in super::super) fn available() -> bool {
    static GRANTED: OnceLock<bool> = OnceLock::new();
    *GRANTED.get_or_init(|| has_int8_tiles() && request_permission())
}

/// `CPUID` leaf 7: EDX bits 24 (AMX-TILE) and 25 (AMX-INT8).
fn has_int8_tiles() -> bool {
    const BOTH: u32 = 0b11 << 24;
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
        /// Sums in 0 and 1, lines of activations in 4, weights in 6 and 7.
        static SHAPES: Shapes = Shapes {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [64, 64, 0, 0, 32, 0, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
            rows: [16, 16, 0, 0, 16, 0, 8, 8, 0, 0, 0, 0, 0, 0, 0, 0],
        };
        if !available() {
            return None;
        }
        // SAFETY: the instruction exists and is permitted; palette 1 has tiles of 16 rows of 64
        // bytes, which these shapes keep within.
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
/// As there; and all rows of `x`'s last strip exist, as they do in `out`. The processor has what
/// `Isa::Amx` names.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in super::super) unsafe fn group_matmul(
    _: &TileConfig,
    format: Format,
    w: Weights,
    x: Inputs,
    out: *mut f32,
) {
    tiles::multiply::<Avx512, Amx>(format, w, x, out);
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
    tiles::multiply_wide::<Avx512, Amx>(format, w, x, segment, out);
}

/// Between `TileConfig::load` and its drop. No block says `nomem`: what is read and written here is
/// memory that the compiler otherwise believes untouched.
struct Amx;

impl Tiles for Amx {
    #[inline(always)]
    unsafe fn products<const W: usize>(
        lines: *const i8,
        stride: usize,
        weights: *const Unpacked,
        out: *mut Products,
    ) {
        if W == 2 {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tileloadd tmm4, [{lines} + {stride}*1]",
                "tileloadd tmm6, [{weights} + {line}*1]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{weights} + {line}*1 + {next}]",
                "tdpbssd tmm1, tmm4, tmm7",
                "tilestored [{out} + {line}*1], tmm0",
                "tilestored [{out} + {line}*1 + {size}], tmm1",
                lines = in(reg) lines,
                stride = in(reg) stride,
                weights = in(reg) weights,
                out = in(reg) out,
                line = in(reg) 64usize,
                next = const size_of::<Unpacked>(),
                size = const size_of::<Products>(),
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags),
            );
        } else {
            asm!(
                "tilezero tmm0",
                "tileloadd tmm4, [{lines} + {stride}*1]",
                "tileloadd tmm6, [{weights} + {line}*1]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tilestored [{out} + {line}*1], tmm0",
                lines = in(reg) lines,
                stride = in(reg) stride,
                weights = in(reg) weights,
                out = in(reg) out,
                line = in(reg) 64usize,
                out("tmm0") _, out("tmm4") _, out("tmm6") _,
                options(nostack, preserves_flags),
            );
        }
    }
}
