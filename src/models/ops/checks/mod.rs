//! Compares every operation with its plain implementation: the kernels of each instruction set, or the results of
//! another device in each dtype, against plain tensor operations on the CPU.
//!
//! The shapes are those of the published models, and odd shapes whose sizes are not multiples of any vector width.
//! The inputs are random numbers with fixed seeds. `groundling selftest` runs the checks on a user's machine; the
//! tests of this module run the odd shapes.

mod attention;
mod bf16;
mod compare;
mod convolution;
mod deformable_sampling;
mod fused_convolution;
mod fusion_attention;
mod inverted_bottleneck;
mod linear;
mod norm;
mod pooling;
mod random;
mod window_attention;

use std::cell::OnceCell;
use std::fmt::Display;

use candle_core::{DType, Device, Result, Tensor};

pub use self::compare::Comparison;
use self::random::Random;
use super::{InstructionSet, Matrix, kernel_set};

/// The number of rows, tokens or cells of the published shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// As many as in the published models, unless that takes gigabytes or minutes.
    Full,
    /// Fewer, with the same channels, heads and window sizes.
    Quick,
}

impl Extent {
    /// Selects one of two numbers.
    fn of<T>(self, full: T, quick: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
        }
    }
}

/// What is compared with the plain tensor operations on the CPU.
#[derive(Debug, Clone)]
pub enum Target {
    /// The kernels on the CPU, compiled for an instruction set.
    Kernel(InstructionSet),
    /// The operations that the models run on a device, in a dtype.
    Device(Device, DType),
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The largest difference, or what is wrong with the result.
    pub comparison: Comparison,
    /// The shape; of several shapes, the one with the largest difference.
    pub shape: String,
}

/// The inputs of one call of an operation, and its implementations.
trait Case {
    /// Computes the results.
    fn run(&self, implementation: Implementation) -> Result<Vec<Tensor>>;
}

/// How an operation is computed.
#[derive(Debug, Clone, Copy)]
enum Implementation<'a> {
    /// By the kernels on the CPU, compiled for an instruction set.
    Kernel(InstructionSet),
    /// By plain tensor operations on the CPU.
    Plain,
    /// The operation that the models call, on a device and in a dtype.
    Device(&'a Device, DType),
}

impl Implementation<'_> {
    /// Copies an input, which is drawn in f32 on the CPU, to the device and the dtype of the computation.
    fn to_target(self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Device(device, dtype) => xs.to_device(device)?.to_dtype(dtype),
            _ => Ok(xs.clone()),
        }
    }

    /// Copies an optional input.
    fn to_target_optional(self, xs: Option<&Tensor>) -> Result<Option<Tensor>> {
        xs.map(|xs| self.to_target(xs)).transpose()
    }

    /// Copies the weight of a linear layer, and packs it if a kernel uses it.
    fn matrix(self, weight: &Tensor) -> Result<Matrix> {
        Matrix::for_set(self.set(&self.to_target(weight)?), self.to_target(weight)?)
    }

    /// The instruction set of the kernels; `None` if no kernel runs.
    fn set(self, xs: &Tensor) -> Option<InstructionSet> {
        match self {
            Self::Kernel(set) => Some(set),
            Self::Plain => None,
            Self::Device(..) => kernel_set(xs),
        }
    }
}

/// The sizes and options of one call of an operation. Its `Display` form is the shape in the table.
trait CallShape: Display {
    /// Draws random inputs.
    fn draw(&self, random: &mut Random) -> Result<Box<dyn Case>>;
}

/// The value of [`Check::used_by`] for shapes that no model has.
const ODD: &str = "odd shapes";

/// A check of an operation with one or several shapes.
pub struct Check {
    op: &'static str,
    used_by: &'static str,
    tolerance: f64,
    /// The tolerance on other devices in f16 and bf16, in multiples of the dtype's rounding error.
    roundings: f64,
    call_shapes: Vec<Box<dyn CallShape>>,
    /// Whether the kernel is compiled for every instruction set.
    is_per_instruction_set: bool,
}

impl Check {
    /// A check with one published shape.
    fn published(
        op: &'static str,
        tolerance: f64,
        used_by: &'static str,
        call_shape: impl CallShape + 'static,
    ) -> Self {
        Self {
            op,
            used_by,
            tolerance,
            roundings: 2.0,
            call_shapes: vec![Box::new(call_shape)],
            is_per_instruction_set: true,
        }
    }

    /// A check with shapes whose sizes are not multiples of any vector width.
    fn odd<S: CallShape + 'static>(
        op: &'static str,
        tolerance: f64,
        call_shapes: impl IntoIterator<Item = S>,
    ) -> Self {
        let boxed = |call_shape| Box::new(call_shape) as Box<dyn CallShape>;
        Self {
            op,
            used_by: ODD,
            tolerance,
            roundings: 2.0,
            call_shapes: call_shapes.into_iter().map(boxed).collect(),
            is_per_instruction_set: true,
        }
    }

    /// The operation's name.
    pub fn op(&self) -> &'static str {
        self.op
    }

    /// The model, and its part that uses this shape, or `odd shapes`.
    pub fn used_by(&self) -> &'static str {
        self.used_by
    }

    /// Replaces the default of two rounding errors.
    fn with_roundings(self, roundings: f64) -> Self {
        Self { roundings, ..self }
    }

    /// The tolerance in f32, as a share of the result's scale.
    pub fn tolerance(&self) -> f64 {
        self.tolerance
    }

    /// The tolerance for a target.
    pub fn tolerance_for(&self, target: &Target) -> f64 {
        let rounding = match target {
            Target::Device(_, DType::F16) => 2f64.powi(-11),
            Target::Device(_, DType::BF16) => 2f64.powi(-8),
            _ => 0.0,
        };
        self.tolerance.max(self.roundings * rounding)
    }

    /// Whether the kernel is compiled for every instruction set; otherwise all of them run the same code.
    pub fn is_per_instruction_set(&self) -> bool {
        self.is_per_instruction_set
    }

    /// The operation with a published shape, for benchmarks; `None` for odd shapes.
    pub fn call(&self) -> Option<Call<'_>> {
        match &*self.call_shapes {
            [call_shape] if self.used_by != ODD => Some(Call {
                call_shape: &**call_shape,
                case: OnceCell::new(),
            }),
            _ => None,
        }
    }

    /// Runs the check for each target.
    pub fn run(&self, targets: &[Target]) -> Vec<Outcome> {
        let outcome = |shape: &str, comparison| Outcome {
            comparison,
            shape: shape.to_owned(),
        };
        let mut worst = vec![outcome("", Comparison::Difference(0.0)); targets.len()];
        for (call_shape, seed) in self.call_shapes.iter().zip(0..) {
            let shape = call_shape.to_string();
            let compared = compare(&**call_shape, seed, targets)
                .unwrap_or_else(|error| vec![Comparison::Failed(error.to_string()); targets.len()]);
            for (worst, compared) in worst.iter_mut().zip(compared) {
                if worst.shape.is_empty() || compared.is_worse_than(&worst.comparison) {
                    *worst = outcome(&shape, compared);
                }
            }
        }
        if self.call_shapes.len() > 1 {
            for worst in &mut worst {
                worst.shape = format!("{}, the worst of {}", worst.shape, self.call_shapes.len());
            }
        }
        worst
    }
}

/// An operation with its inputs. The inputs are drawn at the first call.
pub struct Call<'a> {
    call_shape: &'a dyn CallShape,
    case: OnceCell<Box<dyn Case>>,
}

impl Call<'_> {
    fn case(&self) -> Result<&dyn Case> {
        let case = match self.case.get() {
            Some(case) => case,
            None => {
                let drawn = self.call_shape.draw(&mut Random::new(0))?;
                self.case.get_or_init(|| drawn)
            }
        };
        Ok(&**case)
    }

    /// Runs the kernel for an instruction set.
    ///
    /// # Errors
    /// If the operation fails.
    pub fn with_kernel(&self, set: InstructionSet) -> Result<()> {
        self.case()?.run(Implementation::Kernel(set)).map(drop)
    }

    /// Runs the plain tensor operations on the CPU.
    ///
    /// # Errors
    /// If the operation fails.
    pub fn plain(&self) -> Result<()> {
        self.case()?.run(Implementation::Plain).map(drop)
    }
}

/// Draws the inputs, computes the expected results once, and compares the results of each target.
fn compare(call_shape: &dyn CallShape, seed: u64, targets: &[Target]) -> Result<Vec<Comparison>> {
    let mut random = Random::new(seed);
    if targets
        .iter()
        .any(|target| matches!(target, Target::Device(..)))
    {
        // use inputs that all dtypes can represent, so that only the results are rounded
        random = random.rounded_to(DType::BF16);
    }
    let case = call_shape.draw(&mut random)?;
    let expected = case.run(Implementation::Plain)?;
    let compared = targets.iter().map(|target| {
        let actual = match target {
            Target::Kernel(set) => case.run(Implementation::Kernel(*set)),
            Target::Device(device, dtype) => case.run(Implementation::Device(device, *dtype)),
        };
        actual
            .and_then(|actual| Comparison::of_all(&actual, &expected))
            .unwrap_or_else(|error| Comparison::Failed(error.to_string()))
    });
    Ok(compared.collect())
}

/// All checks, operation by operation.
pub fn all(extent: Extent) -> Vec<Check> {
    [
        linear::checks(extent),
        attention::checks(extent),
        window_attention::checks(extent),
        pooling::checks(extent),
        fusion_attention::checks(extent),
        deformable_sampling::checks(extent),
        convolution::checks(extent),
        fused_convolution::checks(extent),
        inverted_bottleneck::checks(extent),
        norm::checks(extent),
        bf16::checks(extent),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_equal_plain_tensors_for_odd_shapes_on_every_instruction_set() {
        let targets: Vec<Target> = InstructionSet::available()
            .into_iter()
            .map(Target::Kernel)
            .collect();
        let mut ops = vec![];
        for check in all(Extent::Quick) {
            if check.used_by() != ODD {
                continue;
            }
            for (outcome, target) in check.run(&targets).iter().zip(&targets) {
                assert!(
                    outcome.comparison.is_within(check.tolerance()),
                    "{} {} {target:?}: {}",
                    check.op(),
                    outcome.shape,
                    outcome.comparison
                );
            }
            ops.push(check.op());
        }
        let mut all: Vec<_> = all(Extent::Quick).iter().map(Check::op).collect();
        all.dedup();
        assert_eq!(ops, all, "every operation must have odd shapes");
    }

    /// Adds 1 to its input; the kernel adds an additional error.
    struct Increment {
        xs: Tensor,
        error: f64,
    }

    impl Case for Increment {
        fn run(&self, implementation: Implementation) -> Result<Vec<Tensor>> {
            let error = match implementation {
                Implementation::Kernel(_) => self.error,
                _ => 0.0,
            };
            Ok(vec![
                ((implementation.to_target(&self.xs)? + 1.0)? + error)?,
            ])
        }
    }

    /// A call whose kernel adds this error to the result.
    struct WrongBy(f64);

    impl Display for WrongBy {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "wrong by {}", self.0)
        }
    }

    impl CallShape for WrongBy {
        fn draw(&self, random: &mut Random) -> Result<Box<dyn Case>> {
            let xs = random.spread(1.0, (3, 5))?;
            Ok(Box::new(Increment { xs, error: self.0 }))
        }
    }

    #[test]
    fn a_wrong_kernel_exceeds_the_tolerance() {
        let check = Check::odd("increment", 1e-6, [0.0, 1e-3, 1e-8].map(WrongBy));
        let targets = [
            Target::Kernel(InstructionSet::Portable),
            Target::Device(Device::Cpu, DType::F32),
        ];
        let outcomes = check.run(&targets);
        assert_eq!(outcomes[0].shape, "wrong by 0.001, the worst of 3");
        assert!(!outcomes[0].comparison.is_within(check.tolerance()));
        assert_eq!(outcomes[1].comparison, Comparison::Difference(0.0));
        let nan = Check::published("increment", 1e-6, "a test", WrongBy(f64::NAN));
        assert_eq!(nan.run(&targets)[0].comparison, Comparison::NotFinite);
    }
}
