//! Loops that the compiler vectorises, compiled for three instruction sets and chosen at run time.
//!
//! A portable build uses SSE2 only.  [`vectorised!`](crate::vectorised) compiles a function's body for AVX-512, for
//! AVX2 with FMA, and for the baseline, and calls the best version that the processor supports.  Inside the body, `FMA`
//! says whether the processor has a fused multiply-add instruction.  Without one, `f32::mul_add` would call the C
//! library, so [`fma`] multiplies and adds instead.

/// Compiles `fn name(args) -> ret { body }` for each instruction set; the body can use `FMA` as a const argument.
#[macro_export]
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { body::<true>($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { body::<true>($($arg),*) }
                match $crate::simd::level() {
                    // SAFETY: `level` has checked that this processor has the features named above.
                    $crate::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::simd::Level::Baseline => {}
                }
            }
            body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}

/// Instruction sets that [`vectorised!`](crate::vectorised) compiles for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// AVX-512 F, VL, DQ, BW.
    Avx512,
    /// AVX2 with FMA.
    Avx2,
    /// The instructions that every processor of the architecture has.
    Baseline,
}

/// The best instruction set of this processor.
#[inline]
pub fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        // `is_x86_feature_detected!` caches its answer; each call is one load and one test.
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bw")
        {
            return Level::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Level::Avx2;
        }
    }
    Level::Baseline
}

/// `a * b + c`, as one instruction if `FMA`.
#[inline(always)]
pub fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// e^x to about 1 ulp for x in [-87, 88], clamped outside; NaN stays NaN.
///
/// Cody-Waite range reduction and the Taylor polynomial of degree 7 on [-ln2/2, ln2/2].
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    // Comparisons instead of f32::max and f32::min, which would drop a NaN that must reach the loss.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, 12_582_912.0);
    let n = shifted - 12_582_912.0;
    let r = fma::<FMA>(n, -0.693_359_4, x);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    let p = fma::<FMA>(1.0 / 5040.0, r, 1.0 / 720.0);
    let p = fma::<FMA>(p, r, 1.0 / 120.0);
    let p = fma::<FMA>(p, r, 1.0 / 24.0);
    let p = fma::<FMA>(p, r, 1.0 / 6.0);
    let p = fma::<FMA>(p, r, 0.5);
    let p = fma::<FMA>(p, r, 1.0);
    let p = fma::<FMA>(p, r, 1.0);
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    p * scale
}

/// Number of accumulators in a reduction: two AVX-512 registers, so that additions overlap.
pub const LANES: usize = 32;

/// The sum of `f(i)` for `i` in 0..n, added in a fixed order.
#[inline(always)]
pub fn reduce(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let whole = n - n % LANES;
    let mut i = 0;
    while i < whole {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += f(i + l);
        }
        i += LANES;
    }
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    let mut total = lanes[0];
    for i in whole..n {
        total += f(i);
    }
    total
}

/// The largest value of `x`; negative infinity if `x` is empty.  A NaN may be ignored; it still reaches the result in the caller.
#[inline(always)]
pub fn largest(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, v);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_two_ulp_with_and_without_fma() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp();
            for got in [exp::<true>(x), exp::<false>(x)] {
                assert!((f64::from(got) - exact).abs() <= 2.4e-7 * exact, "exp({x}) = {got}, not {exact}");
            }
        }
        assert!(exp::<true>(f32::NAN).is_nan());
        assert!(exp::<true>(-1e30) < 1e-37);
    }

    #[test]
    fn reduce_takes_every_element_once() {
        for n in [0, 1, 31, 32, 33, 100] {
            assert_eq!(reduce(n, |i| i as f32), (0..n).sum::<usize>() as f32);
        }
    }
}
