//! Vectorised elementary functions, relative error below 3e-7 (tested over their whole range).

use super::simd::Simd;

/// eˣ. Below −87.3 it stays at 1.2e-38 instead of going on to zero; above 88.3 it stays finite.
///
/// # Safety
/// The processor must have `S`.
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller's condition.
    unsafe {
        // x last: where one operand is NaN the second is the result, so NaN stays NaN.
        let x = S::max(S::splat(-87.3), S::min(S::splat(88.3), x));
        // x = n · ln 2 + r, |r| ≤ ln 2 / 2, ln 2 in two parts so that r is exact to the last bit.
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let r = S::mul_add(n, S::splat(-0.693_359_4), x);
        let r = S::mul_add(n, S::splat(2.121_944_4e-4), r);
        // eʳ − 1 − r by a polynomial of degree 5 in r, times r² (the coefficients of Cephes' expf).
        let mut p = S::splat(1.987_569_1e-4);
        p = S::mul_add(p, r, S::splat(1.398_199_9e-3));
        p = S::mul_add(p, r, S::splat(8.333_452e-3));
        p = S::mul_add(p, r, S::splat(4.166_579_6e-2));
        p = S::mul_add(p, r, S::splat(1.666_666_5e-1));
        p = S::mul_add(p, r, S::splat(5.0e-1));
        let p = S::add(S::mul_add(p, S::mul(r, r), r), S::splat(1.0));
        S::scale(p, n)
    }
}

/// 2^(a · b), for |a · b| below some 10¹⁵; far below −126 it is zero or tiny. Ten instructions with AVX-512, the product
/// included.
///
/// # Safety
/// The processor must have `S`.
#[inline(always)]
pub unsafe fn exp2_of_product<S: Simd>(a: S::F, b: S::F) -> S::F {
    // SAFETY: the caller's condition.
    unsafe {
        // a · b = n + r, |r| ≤ 1/2: adding 1.5 · 2²³ rounds to an integer; r is taken from the exact product.
        let round = S::splat(12_582_912.0);
        let n = S::sub(S::mul_add(a, b, round), round);
        let r = S::mul_sub(a, b, n);
        // 2ʳ by the polynomial whose greatest relative error is least (Remez), but for 2⁰ = 1.
        let mut p = S::splat(1.327_647_3e-3);
        p = S::mul_add(p, r, S::splat(9.675_541e-3));
        p = S::mul_add(p, r, S::splat(5.550_713_3e-2));
        p = S::mul_add(p, r, S::splat(2.402_212e-1));
        p = S::mul_add(p, r, S::splat(6.931_469_7e-1));
        p = S::mul_add(p, r, S::splat(1.0));
        S::scale_any(p, n)
    }
}

/// log(1 + eˣ) = max(x, 0) + log1p(e^−|x|), accurate where it is tiny too.
///
/// # Safety
/// The processor must have `S`.
#[inline(always)]
pub unsafe fn softplus<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller's condition.
    unsafe {
        let zero = S::splat(0.0);
        let t = exp::<S>(S::min(S::sub(zero, x), x));
        // log1p(t) = 2 artanh(s), s = t / (2 + t) ≤ 1/3: the odd series, cut where 3⁻²ᵏ is below f32.
        let s = S::mul(t, S::reciprocal(S::add(t, S::splat(2.0))));
        let s2 = S::mul(s, s);
        let mut p = S::splat(2.0 / 15.0);
        p = S::mul_add(p, s2, S::splat(2.0 / 13.0));
        p = S::mul_add(p, s2, S::splat(2.0 / 11.0));
        p = S::mul_add(p, s2, S::splat(2.0 / 9.0));
        p = S::mul_add(p, s2, S::splat(2.0 / 7.0));
        p = S::mul_add(p, s2, S::splat(2.0 / 5.0));
        p = S::mul_add(p, s2, S::splat(2.0 / 3.0));
        p = S::mul_add(p, s2, S::splat(2.0));
        S::mul_add(p, s, S::max(zero, x))
    }
}

/// x / (1 + e^−x).
///
/// # Safety
/// The processor must have `S`.
#[inline(always)]
pub unsafe fn silu<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller's condition.
    unsafe { S::mul(x, S::reciprocal(S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), x))))) }
}

/// 1 / (1 + e^−x): the derivative of [`softplus`].
///
/// # Safety
/// The processor must have `S`.
#[inline(always)]
pub unsafe fn sigmoid<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller's condition.
    unsafe { S::reciprocal(S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), x)))) }
}

/// The derivative of [`silu`], absolute error below 1e-6.
///
/// # Safety
/// The processor must have `S`.
#[inline(always)]
pub unsafe fn silu_slope<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller's condition.
    unsafe {
        let sigmoid = sigmoid::<S>(x);
        S::mul(sigmoid, S::mul_add(x, S::sub(S::splat(1.0), sigmoid), S::splat(1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{Kernel, Level};
    use crate::ops::selective_scan::reference;

    enum Function {
        Exp,
        Exp2,
        Softplus,
        Silu,
    }

    struct Apply<'a>(Function, &'a [f32], &'a mut [f32]);

    impl Kernel for Apply<'_> {
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            for (x, y) in self.1.chunks(S::LANES).zip(self.2.chunks_mut(S::LANES)) {
                // SAFETY: both chunks have `x.len()` elements.
                unsafe {
                    let v = S::load_first(x.as_ptr(), x.len());
                    let v = match self.0 {
                        Function::Exp => exp::<S>(v),
                        Function::Exp2 => exp2_of_product::<S>(v, S::splat(0.5)),
                        Function::Softplus => softplus::<S>(v),
                        Function::Silu => silu::<S>(v),
                    };
                    S::store_first(y.as_mut_ptr(), v, x.len());
                }
            }
        }
    }

    fn worst(function: fn() -> Function, exact: fn(f64) -> f64, from: f32, to: f32) -> f64 {
        let n = 400_001;
        let x: Vec<f32> = (0..n).map(|i| from + (to - from) * i as f32 / (n - 1) as f32).collect();
        let mut worst = 0.0f64;
        for level in Level::available() {
            let mut y = vec![f32::NAN; x.len()];
            // SAFETY: the level is available.
            unsafe { level.run(Apply(function(), &x, &mut y)) };
            for (x, y) in x.iter().zip(&y) {
                let exact = exact(f64::from(*x));
                let error = (f64::from(*y) - exact).abs() / exact.abs().max(1e-37);
                assert!(error.is_finite(), "{level:?}: f({x}) = {y}");
                worst = worst.max(error);
            }
        }
        worst
    }

    #[test]
    fn relative_errors_are_below_3e_7() {
        assert!(worst(|| Function::Exp, f64::exp, -87.0, 88.0) < 3e-7);
        assert!(worst(|| Function::Exp, f64::exp, -1.0, 1.0) < 3e-7);
        assert!(worst(|| Function::Exp2, |x| (0.5 * x).exp2(), -250.0, 250.0) < 3e-7);
        assert!(worst(|| Function::Exp2, |x| (0.5 * x).exp2(), -2.0, 2.0) < 3e-7);
        assert!(worst(|| Function::Softplus, reference::softplus, -80.0, 80.0) < 3e-7);
        assert!(worst(|| Function::Softplus, reference::softplus, -8.0, 2.0) < 3e-7);
        assert!(worst(|| Function::Silu, reference::silu, -80.0, 80.0) < 3e-7);
    }

    #[test]
    fn extremes_are_finite() {
        let x = [f32::MAX, f32::MIN, 1e4, -1e4, 0.0, f32::INFINITY, f32::NEG_INFINITY];
        for level in Level::available() {
            let mut y = [f32::NAN; 7];
            // SAFETY: the level is available.
            unsafe { level.run(Apply(Function::Exp, &x, &mut y)) };
            assert!(y.iter().all(|y| y.is_finite()) && y[4] == 1.0, "{level:?}: {y:?}");
            let x = [0.0, -300.0, -2e4, -1e9, -1e15, 0.25, -0.25];
            // SAFETY: the level is available.
            unsafe { level.run(Apply(Function::Exp2, &x, &mut y)) };
            assert!(y[0] == 1.0 && y[1..5].iter().all(|y| (0.0..1.7e-38).contains(y)), "{level:?}: {y:?}");
        }
    }
}
