//! The layout of numbers in the 32-bit words of a packed matrix, and the products with them.
//!
//! A word is one f32, or two bf16 numbers of neighbouring depths, the first in the lower half. Products of bf16 are
//! exact in f32 and are summed in f32: only the factors are rounded, to 8 significant bits.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m512, __m512bh, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_set1_epi32, _mm512_setzero_ps,
};
use std::mem::MaybeUninit;

use pulp::Simd;

use crate::packed::VECTORS;
use crate::simd::{load, multiply_add};
use crate::tile::{DEPTH_WORDS, TILE_ROWS};

/// A kind of word.
pub(crate) trait Words {
    /// Depths per word.
    const DEPTHS: usize;

    /// Maximum number of rows of `A` for one call of [`Words::to_words`].
    const MAX_ROWS: usize;

    /// The buffer for rows of `A` as words, if they are not stored as words already.
    type Buffer;

    /// An empty buffer.
    fn buffer() -> Self::Buffer;

    /// Converts `rows` rows of `depth` numbers, `stride` numbers apart, to words. Returns a pointer to the first
    /// word, and the number of words from one row to the next. At most [`DEPTH_WORDS`] words per row are allowed.
    ///
    /// # Safety
    /// `a` must be valid for reads of the rows.
    unsafe fn to_words(
        buffer: &mut Self::Buffer,
        rows: usize,
        a: (*const f32, usize),
        depth: usize,
    ) -> (*const f32, usize);

    /// The sums of products over `count` words, for `ROWS` rows from [`Words::to_words`] and a panel.
    ///
    /// # Safety
    /// The rows and the panel must be valid for reads of `count` words, and the panel must be as wide as two vectors.
    unsafe fn sums<S: Simd, const ROWS: usize>(
        simd: S,
        rows: (*const f32, usize),
        panel: *const f32,
        count: usize,
    ) -> [[S::f32s; VECTORS]; ROWS];
}

/// Words per iteration of the unrolled loop.
const UNROLLED: usize = 4;

/// One f32.
pub(crate) struct F32Words;

impl Words for F32Words {
    const DEPTHS: usize = 1;
    const MAX_ROWS: usize = usize::MAX;
    type Buffer = ();

    #[inline(always)]
    fn buffer() {}

    #[inline(always)]
    unsafe fn to_words(
        (): &mut (),
        _: usize,
        a: (*const f32, usize),
        _: usize,
    ) -> (*const f32, usize) {
        a
    }

    #[inline(always)]
    unsafe fn sums<S: Simd, const ROWS: usize>(
        simd: S,
        (first, stride): (*const f32, usize),
        panel: *const f32,
        count: usize,
    ) -> [[S::f32s; VECTORS]; ROWS] {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let rows: [*const f32; ROWS] = std::array::from_fn(|r| first.add(r * stride));
            let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
            let mut done = 0;
            while done + UNROLLED <= count {
                for word in done..done + UNROLLED {
                    add_products::<S, ROWS>(simd, rows, panel, word, &mut sums);
                }
                done += UNROLLED;
            }
            while done < count {
                add_products::<S, ROWS>(simd, rows, panel, done, &mut sums);
                done += 1;
            }
            sums
        }
    }
}

/// Adds the products of one depth: a row of a panel with one number of every row of `A`.
///
/// # Safety
/// The panel and every row must be valid for reads at `depth`.
#[inline(always)]
unsafe fn add_products<S: Simd, const ROWS: usize>(
    simd: S,
    rows: [*const f32; ROWS],
    panel: *const f32,
    depth: usize,
    sums: &mut [[S::f32s; VECTORS]; ROWS],
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let columns = columns::<S>(simd, panel, depth);
        for (sums, row) in sums.iter_mut().zip(rows) {
            let a = simd.splat_f32s(*row.add(depth));
            for (sum, column) in sums.iter_mut().zip(columns) {
                *sum = multiply_add(simd, a, column, *sum);
            }
        }
    }
}

/// The words of a panel at one depth.
///
/// # Safety
/// The panel must be valid for reads at `word`.
#[inline(always)]
unsafe fn columns<S: Simd>(simd: S, panel: *const f32, word: usize) -> [S::f32s; VECTORS] {
    let mut columns = [simd.splat_f32s(0.0); VECTORS];
    for (v, column) in columns.iter_mut().enumerate() {
        // SAFETY: guaranteed by the caller.
        *column = unsafe { load::<S>(panel.add((word * VECTORS + v) * S::F32_LANES)) };
    }
    columns
}

/// Two bf16 numbers, multiplied as f32.
pub(crate) struct Bf16Words;

/// Words from one row of rounded numbers to the next. It is not a power of two, so that rows do not map to the same
/// cache sets.
const ROUNDED_STRIDE: usize = DEPTH_WORDS + 16;

impl Words for Bf16Words {
    const DEPTHS: usize = 2;
    const MAX_ROWS: usize = TILE_ROWS;
    type Buffer = [MaybeUninit<u32>; TILE_ROWS * ROUNDED_STRIDE];

    #[inline(always)]
    fn buffer() -> Self::Buffer {
        [MaybeUninit::uninit(); _]
    }

    #[inline(always)]
    unsafe fn to_words(
        buffer: &mut Self::Buffer,
        rows: usize,
        (a, stride): (*const f32, usize),
        depth: usize,
    ) -> (*const f32, usize) {
        for (row, words) in buffer
            .chunks_exact_mut(ROUNDED_STRIDE)
            .take(rows)
            .enumerate()
        {
            // SAFETY: guaranteed by the caller.
            let numbers = unsafe { std::slice::from_raw_parts(a.add(row * stride), depth) };
            let (pairs, odd) = numbers.as_chunks::<2>();
            for (word, [first, second]) in words.iter_mut().zip(pairs) {
                word.write(bf16_pair(*first, *second));
            }
            if let [last] = odd {
                words[pairs.len()].write(bf16_pair(*last, 0.0));
            }
        }
        (buffer.as_ptr().cast(), ROUNDED_STRIDE)
    }

    #[inline(always)]
    unsafe fn sums<S: Simd, const ROWS: usize>(
        simd: S,
        (rows, _): (*const f32, usize),
        panel: *const f32,
        count: usize,
    ) -> [[S::f32s; VECTORS]; ROWS] {
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
        for word in 0..count {
            // SAFETY: guaranteed by the caller.
            unsafe {
                let pairs = columns::<S>(simd, panel, word);
                let mut halves = [pairs; 2];
                for v in 0..VECTORS {
                    let bits = simd.transmute_u32s_f32s(pairs[v]);
                    let first = simd.wrapping_dyn_shl_u32s(bits, simd.splat_u32s(16));
                    let second = simd.and_u32s(bits, simd.splat_u32s(UPPER_HALF));
                    halves[0][v] = simd.transmute_f32s_u32s(first);
                    halves[1][v] = simd.transmute_f32s_u32s(second);
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let bits = (*rows.add(r * ROUNDED_STRIDE + word)).to_bits();
                    let numbers = [
                        f32::from_bits(bits << 16),
                        f32::from_bits(bits & UPPER_HALF),
                    ];
                    for (number, columns) in numbers.into_iter().zip(halves) {
                        let a = simd.splat_f32s(number);
                        for (sum, column) in sums.iter_mut().zip(columns) {
                            *sum = multiply_add(simd, a, column, *sum);
                        }
                    }
                }
            }
        }
        sums
    }
}

/// Two bf16 numbers, multiplied by AVX-512's bf16 instruction.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Bf16DotWords;

#[cfg(target_arch = "x86_64")]
impl Words for Bf16DotWords {
    const DEPTHS: usize = Bf16Words::DEPTHS;
    const MAX_ROWS: usize = Bf16Words::MAX_ROWS;
    type Buffer = <Bf16Words as Words>::Buffer;

    #[inline(always)]
    fn buffer() -> Self::Buffer {
        Bf16Words::buffer()
    }

    #[inline(always)]
    unsafe fn to_words(
        buffer: &mut Self::Buffer,
        rows: usize,
        a: (*const f32, usize),
        depth: usize,
    ) -> (*const f32, usize) {
        // SAFETY: guaranteed by the caller.
        unsafe { Bf16Words::to_words(buffer, rows, a, depth) }
    }

    #[inline(always)]
    unsafe fn sums<S: Simd, const ROWS: usize>(
        simd: S,
        (rows, _): (*const f32, usize),
        panel: *const f32,
        count: usize,
    ) -> [[S::f32s; VECTORS]; ROWS] {
        assert_eq!(S::F32_LANES, 16, "the panels must be packed for AVX-512");
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
        // SAFETY: guaranteed by the caller; a matrix has pairs of this kind only if the CPU has the instruction
        // (`Packed::of_rows`), and a vector of 16 f32 is an `__m512`.
        unsafe { dot_sums::<ROWS>(rows, panel, count, (&raw mut sums).cast()) };
        sums
    }
}

/// [`Bf16DotWords::sums`] as a separate function, because its caller is compiled without this instruction.
///
/// # Safety
/// See [`Words::sums`]; `sums` must be valid for writes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn dot_sums<const ROWS: usize>(
    rows: *const f32,
    panel: *const f32,
    count: usize,
    sums: *mut [[__m512; VECTORS]; ROWS],
) {
    let mut added = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    for word in 0..count {
        // SAFETY: guaranteed by the caller; all bit patterns are valid numbers.
        unsafe {
            let mut columns = [_mm512_setzero_ps(); VECTORS];
            for (v, column) in columns.iter_mut().enumerate() {
                *column = _mm512_loadu_ps(panel.add((word * VECTORS + v) * 16));
            }
            for (r, added) in added.iter_mut().enumerate() {
                let bits = (*rows.add(r * ROUNDED_STRIDE + word)).to_bits();
                let a: __m512bh = std::mem::transmute(_mm512_set1_epi32(bits.cast_signed()));
                for (sum, column) in added.iter_mut().zip(columns) {
                    *sum =
                        _mm512_dpbf16_ps(*sum, a, std::mem::transmute::<__m512, __m512bh>(column));
                }
            }
        }
    }
    // SAFETY: guaranteed by the caller.
    unsafe { sums.write(added) };
}

/// The bits of an f32 that a bf16 keeps.
const UPPER_HALF: u32 = 0xffff_0000;

/// Packs two numbers as bf16 into a word.
#[inline(always)]
pub(crate) fn bf16_pair(first: f32, second: f32) -> u32 {
    round_to_bf16(first) >> 16 | round_to_bf16(second)
}

/// The nearest bf16, ties to even, in the upper half of a word.
#[inline(always)]
fn round_to_bf16(number: f32) -> u32 {
    let bits = number.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & UPPER_HALF;
    if number.is_nan() {
        f32::NAN.to_bits()
    } else {
        nearest
    }
}
