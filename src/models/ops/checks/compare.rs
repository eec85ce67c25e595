//! The difference between a result and the expected one.

use std::fmt;

use candle_core::{DType, Device, Result, Tensor};

/// Lower limit of the scale. The inputs of the checks are of the order of 1, and so are the rounding errors. If all
/// expected numbers are smaller than this, terms have cancelled each other.
const MIN_SCALE: f32 = 0.1;

/// The result of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub enum Comparison {
    /// The largest difference of two numbers, as a share of the scale. The scale is the largest absolute expected
    /// number, but at least 0.1.
    Difference(f64),
    /// A number of one of the results is infinite or NaN.
    NotFinite,
    /// The results have other shapes, or another number, than expected; a sentence.
    Shape(String),
    /// The operation failed; the error's text.
    Failed(String),
}

impl Comparison {
    /// Compares two tensors, which may be on different devices.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn between(actual: &Tensor, expected: &Tensor) -> Result<Self> {
        if actual.dims() != expected.dims() {
            let (actual, expected) = (actual.dims(), expected.dims());
            return Ok(Self::Shape(format!(
                "the result has the shape {actual:?}, expected {expected:?}"
            )));
        }
        let (actual, expected) = (numbers(actual)?, numbers(expected)?);
        let (mut largest, mut scale) = (0f32, MIN_SCALE);
        for (actual, expected) in actual.iter().zip(&expected) {
            if !(actual.is_finite() && expected.is_finite()) {
                return Ok(Self::NotFinite);
            }
            largest = largest.max((actual - expected).abs());
            scale = scale.max(expected.abs());
        }
        Ok(Self::Difference(f64::from(largest) / f64::from(scale)))
    }

    /// The worst comparison of several results; each has its own scale.
    pub(super) fn of_all(actual: &[Tensor], expected: &[Tensor]) -> Result<Self> {
        if actual.len() != expected.len() {
            let (actual, expected) = (actual.len(), expected.len());
            return Ok(Self::Shape(format!(
                "there are {actual} results, expected {expected}"
            )));
        }
        let mut worst = Self::Difference(0.0);
        for (actual, expected) in actual.iter().zip(expected) {
            let compared = Self::between(actual, expected)?;
            if compared.is_worse_than(&worst) {
                worst = compared;
            }
        }
        Ok(worst)
    }

    /// Whether the results are comparable, and their difference is within the tolerance.
    pub fn is_within(&self, tolerance: f64) -> bool {
        matches!(self, Self::Difference(difference) if *difference <= tolerance)
    }

    /// Whether this comparison is worse than another; results that cannot be compared are the worst.
    pub(super) fn is_worse_than(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Difference(one), Self::Difference(other)) => one > other,
            (_, other) => matches!(other, Self::Difference(_)),
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Difference(difference) => write!(f, "{difference:.1e}"),
            Self::NotFinite => f.write_str("a number is infinite or NaN"),
            Self::Shape(shapes) => f.write_str(shapes),
            Self::Failed(error) => write!(f, "the operation failed: {error}"),
        }
    }
}

fn numbers(xs: &Tensor) -> Result<Vec<f32>> {
    xs.to_device(&Device::Cpu)?
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(actual: &[f32], expected: &[f32]) -> Comparison {
        let tensor = |xs: &[f32]| Tensor::new(xs, &Device::Cpu).unwrap();
        Comparison::between(&tensor(actual), &tensor(expected)).unwrap()
    }

    #[test]
    fn differences_are_shares_of_the_scale() {
        assert_eq!(
            compared(&[1.0, -4.0], &[1.0, -4.0]),
            Comparison::Difference(0.0)
        );
        let perturbed = compared(&[1.5, -4.0], &[1.0, -4.0]);
        assert_eq!(perturbed, Comparison::Difference(0.125));
        assert!(perturbed.is_within(0.125) && !perturbed.is_within(0.124));
        let of_zeros = compared(&[0.0, 0.5], &[0.0, 0.0]);
        assert_eq!(of_zeros, Comparison::Difference(0.5 / f64::from(MIN_SCALE)));
        assert_eq!(compared(&[], &[]), Comparison::Difference(0.0));
    }

    #[test]
    fn infinite_and_nan_results_are_never_within_the_tolerance() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for comparison in [
                compared(&[bad], &[1.0]),
                compared(&[1.0], &[bad]),
                // equal, but not usable by a model
                compared(&[bad], &[bad]),
            ] {
                assert_eq!(comparison, Comparison::NotFinite);
                assert!(!comparison.is_within(f64::INFINITY));
                assert!(comparison.is_worse_than(&Comparison::Difference(9.0)));
                assert!(!Comparison::Difference(9.0).is_worse_than(&comparison));
            }
        }
    }

    #[test]
    fn different_shapes_are_reported() {
        let other = compared(&[1.0], &[1.0, 2.0]);
        assert_eq!(
            other.to_string(),
            "the result has the shape [1], expected [2]"
        );
        assert!(!other.is_within(1.0));
        let one = Tensor::new(1f32, &Device::Cpu).unwrap();
        let of_all = Comparison::of_all(std::slice::from_ref(&one), &[one.clone(), one.clone()]);
        assert!(matches!(of_all, Ok(Comparison::Shape(_))));
    }
}
