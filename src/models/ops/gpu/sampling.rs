//! The sampling step of multi-scale deformable attention on a GPU.

use candle_core::{DType, Result, Tensor};

use super::launch::{Levels, MAX_LEVELS};
use super::{Argument, Grid, empty, launch, size};
use crate::models::ops::Sampling;
use crate::models::ops::deformable_sampling::deformable_sampling_plain;

/// See [`crate::models::ops::deformable_sampling`]; the caller has checked the shapes.
pub(in crate::models::ops) fn deformable_sampling(
    value: &Tensor,
    samples: &Tensor,
    reference: &Tensor,
    sampling: Sampling,
) -> Result<Tensor> {
    let shapes = sampling.shapes;
    if shapes.len() > MAX_LEVELS {
        return deformable_sampling_plain(value, samples, reference, sampling);
    }
    let (batch, heads, tokens, width) = value.dims4()?;
    let queries = samples.dim(1)?;
    let mut levels = Levels {
        count: size(shapes.len())?,
        rows: [0; MAX_LEVELS],
        columns: [0; MAX_LEVELS],
    };
    for (level, &(rows, columns)) in shapes.iter().enumerate() {
        (levels.rows[level], levels.columns[level]) = (size(rows)?, size(columns)?);
    }
    let (value, samples) = (value.contiguous()?, samples.to_dtype(value.dtype())?);
    let samples = samples.contiguous()?;
    let reference = reference.to_dtype(DType::F32)?.contiguous()?;
    let out = empty((batch, queries, heads * width), &value)?;
    // SAFETY: these are the kernel's arguments. `check` has compared the shapes, so the kernel reads only inside the
    // tensors, and only cells inside the maps. `out` is new.
    #[allow(unsafe_code)]
    unsafe {
        launch(
            "sampling",
            &value,
            Grid::of_warps(batch * queries * heads),
            &[
                Argument::Tensor(&value),
                Argument::Tensor(&samples),
                Argument::Tensor(&reference),
                Argument::Tensor(&out),
                Argument::Levels(&levels),
                Argument::Size(size(batch * queries)?),
                Argument::Size(size(queries)?),
                Argument::Size(size(heads)?),
                Argument::Size(size(tokens)?),
                Argument::Size(size(width)?),
                Argument::Size(size(sampling.points)?),
                Argument::Size(size(reference.dim(3)?)?),
            ],
        )?;
    }
    Ok(out)
}
