//! Which instructions multiply. A [`Path`] is found at run time, once per process; nothing here multiplies.

use std::sync::OnceLock;

/// A way to multiply bf16 matrices with f32 accumulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// Tile registers: `tdpbf16ps` (Intel since Sapphire Rapids, Linux only). Packs with AVX-512.
    Amx,
    /// Vector registers: `vdpbf16ps` (AMD since Zen 4, Intel since Cooper Lake).
    Avx512Bf16,
    /// No special instructions. The same operands on every processor; the tests' judge.
    Scalar,
}

impl Path {
    /// All of them, fastest first.
    pub const ALL: [Self; 3] = [Self::Amx, Self::Avx512Bf16, Self::Scalar];

    /// The fastest one this process can use.
    pub fn best() -> Self {
        Self::available().next().unwrap_or(Self::Scalar)
    }

    /// Those this process can use, fastest first; never empty.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|path| path.is_available())
    }

    /// Whether this process can use it.
    pub fn is_available(self) -> bool {
        let found = found();
        match self {
            Self::Amx => found.amx,
            Self::Avx512Bf16 => found.avx512_bf16,
            Self::Scalar => true,
        }
    }
}

#[derive(Clone, Copy)]
struct Found {
    amx: bool,
    avx512_bf16: bool,
}

fn found() -> Found {
    static FOUND: OnceLock<Found> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let avx512_bf16 = has_avx512_bf16();
        // The kernel is asked last, and only where tiles exist: a yes makes every signal frame 8 KiB larger.
        Found { amx: avx512_bf16 && has_tiles() && may_use_tiles(), avx512_bf16 }
    })
}

#[cfg(target_arch = "x86_64")]
fn has_avx512_bf16() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512_bf16() -> bool {
    false
}

/// Whether the processor multiplies bf16 tiles and the operating system keeps their registers.
#[cfg(target_arch = "x86_64")]
fn has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const OSXSAVE: u32 = 1 << 27;
    const TILE_STATE: u64 = 0b11 << 17;
    let registers = __cpuid(0).eax >= 7 && __cpuid(1).ecx & OSXSAVE != 0 && {
        // SAFETY: OSXSAVE says that the operating system turned `xgetbv` on.
        #[allow(unsafe_code)]
        let state = unsafe { _xgetbv(0) };
        state & TILE_STATE == TILE_STATE
    };
    registers && __cpuid_count(7, 0).edx & (AMX_BF16 | AMX_TILE) == AMX_BF16 | AMX_TILE
}

#[cfg(not(target_arch = "x86_64"))]
fn has_tiles() -> bool {
    false
}

/// Asks Linux for the tile registers; the answer holds for all threads of the process.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn may_use_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XTILEDATA: libc::c_long = 18;
    // SAFETY: this call of arch_prctl takes two numbers and touches no memory of ours.
    #[allow(unsafe_code)]
    let answer = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) };
    answer == 0
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn may_use_tiles() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::Path;

    #[test]
    fn the_best_path_is_the_first_available_one_and_scalar_always_is() {
        let available: Vec<Path> = Path::available().collect();
        assert_eq!(available.first(), Some(&Path::best()));
        assert_eq!(available.last(), Some(&Path::Scalar));
        assert!(!Path::Amx.is_available() || Path::Avx512Bf16.is_available());
    }
}
