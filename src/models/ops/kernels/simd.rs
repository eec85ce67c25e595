//! The instruction sets that the kernels are compiled for. One of them is selected at run time.
//!
//! A kernel is written once with [`pulp::Simd`], whose vectors have as many lanes as the instruction set provides,
//! and is run by [`InstructionSet::run`].

#![allow(unsafe_code)]

use std::sync::OnceLock;

use pulp::{Simd, WithSimd};

/// An instruction set that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstructionSet {
    /// 128-bit vectors without fused multiply-add, which every CPU of the architecture has.
    Portable,
    /// AVX2 and FMA (x86-64-v3); NEON on arm64.
    Vector,
    /// AVX-512 (x86-64-v4).
    Avx512,
    /// AVX-512 with bf16 products.
    Avx512Bf16,
}

/// The upper limit of the instruction sets, if one is set.
static LIMIT: OnceLock<InstructionSet> = OnceLock::new();

impl InstructionSet {
    /// All instruction sets of this machine, the simplest first.
    pub fn available() -> Vec<Self> {
        let mut sets = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if pulp::x86::V3::try_new().is_some() {
                sets.push(Self::Vector);
            }
            if pulp::x86::V4::try_new().is_some() {
                sets.push(Self::Avx512);
                if std::arch::is_x86_feature_detected!("avx512bf16") {
                    sets.push(Self::Avx512Bf16);
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        sets.push(Self::Vector);
        sets
    }

    /// The sets of [`InstructionSet::available`] that this process may use: those up to the limit set by
    /// [`InstructionSet::limit`].
    pub fn permitted() -> Vec<Self> {
        let limit = LIMIT.get().copied().unwrap_or(Self::Avx512Bf16);
        let mut sets = Self::available();
        sets.retain(|set| *set <= limit);
        sets
    }

    /// The best instruction set that this process may use.
    pub fn current() -> Self {
        static BEST: OnceLock<InstructionSet> = OnceLock::new();
        *BEST.get_or_init(|| Self::permitted().pop().unwrap_or(Self::Portable))
    }

    /// Limits the kernels of this process to instruction sets up to `limit`, for tests of older CPUs. It must be
    /// called before the first kernel runs.
    pub fn limit(limit: Self) {
        // a second call has no effect
        let _ = LIMIT.set(limit);
    }

    /// The name for users.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Vector if cfg!(target_arch = "aarch64") => "neon",
            Self::Vector => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512_bf16",
        }
    }

    /// Runs a kernel that is compiled for this instruction set. If the machine does not have it, the portable one is
    /// used.
    #[inline]
    pub fn run<K: WithSimd>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        match self {
            Self::Portable => {}
            Self::Vector => {
                if let Some(simd) = pulp::x86::V3::try_new() {
                    return Simd::vectorize(simd, kernel);
                }
            }
            Self::Avx512 | Self::Avx512Bf16 => {
                if let Some(simd) = pulp::x86::V4::try_new() {
                    return Simd::vectorize(simd, kernel);
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        if self != Self::Portable {
            return pulp::Arch::new().dispatch(kernel);
        }
        Simd::vectorize(pulp::Scalar128b, kernel)
    }

    /// Whether it has an instruction for bf16 products.
    pub fn has_bf16_products(self) -> bool {
        self == Self::Avx512Bf16 && Self::available().contains(&self)
    }

    /// Number of f32 lanes of a vector.
    pub fn lanes(self) -> usize {
        struct Lanes;
        impl WithSimd for Lanes {
            type Output = usize;
            fn with_simd<S: Simd>(self, _: S) -> usize {
                S::F32_LANES
            }
        }
        self.run(Lanes)
    }
}

/// `a b + c`. Without a fused instruction, the library would call a function for every lane; therefore the result is
/// rounded twice there.
#[inline(always)]
pub fn multiply_add<S: Simd>(simd: S, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s {
    if cfg!(target_arch = "x86_64") && S::F32_LANES <= 4 {
        simd.add_f32s(simd.mul_f32s(a, b), c)
    } else {
        simd.mul_add_e_f32s(a, b, c)
    }
}

/// `e^x`, with an error of at most two units in the last place for -87 <= x <= 88. Outside, it returns the value at
/// the nearer end (Cephes' `expf`).
#[inline(always)]
pub fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let splat = |value: f32| simd.splat_f32s(value);
    let x = simd.min_f32s(simd.max_f32s(x, splat(-87.3)), splat(88.0));
    // adding 1.5 * 2^23 rounds to an integer, which is in the low bits of the sum
    let magic = splat(12_582_912.0);
    let shifted = multiply_add(simd, x, splat(std::f32::consts::LOG2_E), magic);
    let n = simd.sub_f32s(shifted, magic);
    let r = multiply_add(simd, n, splat(-0.693_359_4), x);
    let r = multiply_add(simd, n, splat(2.121_944_4e-4), r);
    let mut p = splat(1.987_569_1e-4);
    for c in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_6e-1,
        0.5,
    ] {
        p = multiply_add(simd, p, r, splat(c));
    }
    let p = multiply_add(simd, p, simd.mul_f32s(r, r), simd.add_f32s(r, splat(1.0)));
    // 2^n, from its exponent bits
    let bits = simd.transmute_u32s_f32s(shifted);
    let bits = simd.wrapping_dyn_shl_u32s(bits, simd.splat_u32s(23));
    let scale = simd.add_u32s(bits, simd.splat_u32s(127 << 23));
    simd.mul_f32s(p, simd.transmute_f32s_u32s(scale))
}

/// Replaces numbers by `e^(x - largest)`. The length must be a multiple of the lanes.
#[inline(always)]
pub fn exponentials<S: Simd>(simd: S, numbers: &mut [f32], largest: f32) {
    let largest = simd.splat_f32s(largest);
    let (vectors, rest) = S::as_mut_simd_f32s(numbers);
    debug_assert!(rest.is_empty());
    for vector in vectors {
        *vector = exp(simd, simd.sub_f32s(*vector, largest));
    }
}

/// `x * (1 + erf(x / sqrt 2)) / 2`. The error function has an error of at most 4e-7: it is a quotient of two
/// polynomials on -4..4, and 1 in f32 beyond that (the coefficients of Eigen's `generic_fast_erf_float`).
#[inline(always)]
pub fn gelu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let splat = |value: f32| simd.splat_f32s(value);
    let t = simd.mul_f32s(x, splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = simd.max_f32s(simd.min_f32s(t, splat(4.0)), splat(-4.0));
    let square = simd.mul_f32s(t, t);
    let mut above = splat(-2.726_142_3e-10);
    for c in [
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_5e-5,
        -7.349_906_3e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ] {
        above = multiply_add(simd, above, square, splat(c));
    }
    let mut below = splat(-1.456_607_2e-5);
    for c in [
        -2.133_740_6e-4,
        -1.682_827e-3,
        -7.373_329e-3,
        -1.426_473_9e-2,
    ] {
        below = multiply_add(simd, below, square, splat(c));
    }
    let erf = simd.div_f32s(simd.mul_f32s(t, above), below);
    let half = simd.mul_f32s(x, splat(0.5));
    multiply_add(simd, half, erf, half)
}

/// `x (1 + tanh(u)) / 2` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`, computed as `x / (1 + e^(-2 u))`, which does not
/// subtract nearly equal numbers for negative `x`.
#[inline(always)]
pub fn gelu_tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let splat = |value: f32| simd.splat_f32s(value);
    let one = splat(1.0);
    let factor = multiply_add(simd, simd.mul_f32s(x, x), splat(0.044_715), one);
    // -2 sqrt(2 / pi)
    let exponent = simd.mul_f32s(simd.mul_f32s(x, splat(-1.595_769)), factor);
    simd.div_f32s(x, simd.add_f32s(one, exp(simd, exponent)))
}

/// Copies numbers between slices of the same length. For a few vectors it is faster than a call of `memcpy`.
#[inline(always)]
pub fn copy<S: Simd>(simd: S, from: &[f32], to: &mut [f32]) {
    if from.len() > 8 * S::F32_LANES {
        to.copy_from_slice(from);
        return;
    }
    let (vectors, rest) = S::as_simd_f32s(from);
    let (vectors_to, rest_to) = S::as_mut_simd_f32s(to);
    vectors_to.copy_from_slice(vectors);
    if !rest.is_empty() {
        simd.partial_store_f32s(rest_to, simd.partial_load_f32s(rest));
    }
}

/// # Safety
/// `from` must be valid for reads of a vector.
#[inline(always)]
pub unsafe fn load<S: Simd>(from: *const f32) -> S::f32s {
    // SAFETY: guaranteed by the caller; a vector is plain numbers.
    unsafe { from.cast::<S::f32s>().read_unaligned() }
}

/// Loads the first `count` lanes; the others are zero.
///
/// # Safety
/// `from` must be valid for reads of `count` numbers.
#[inline(always)]
pub unsafe fn load_part<S: Simd>(simd: S, from: *const f32, count: usize) -> S::f32s {
    // SAFETY: guaranteed by the caller.
    simd.partial_load_f32s(unsafe { std::slice::from_raw_parts(from, count) })
}
