//! Multi-head attention.

use candle_core::{Result, Tensor};

use super::Linear;
use crate::models::ops;

/// Query, key and value projections, attention, and the output projection
/// (`GroundingDinoMultiheadAttention`, `SamAttention`, and BERT's self-attention).
#[derive(Debug, Clone)]
pub struct MultiheadAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    heads: usize,
}

impl MultiheadAttention {
    /// Combines loaded projections. The output width of the first three must be divisible by `heads`.
    pub fn new(query: Linear, key: Linear, value: Linear, output: Linear, heads: usize) -> Self {
        Self {
            query,
            key,
            value,
            output,
            heads,
        }
    }

    /// The query projection.
    pub fn query(&self) -> &Linear {
        &self.query
    }

    /// The key projection.
    pub fn key(&self) -> &Linear {
        &self.key
    }

    /// Queries `[B, N, C]`, keys and values `[B, M, C]` (or `[1, M, C]`, shared by all), and `bias`, which broadcasts
    /// to `[B, heads, N, M]`. Returns `residual` plus the result `[B, N, C]`.
    pub fn forward_added(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        bias: Option<&Tensor>,
        residual: &Tensor,
    ) -> Result<Tensor> {
        let (query, key) = (queries.apply(&self.query)?, keys.apply(&self.key)?);
        let attended = self.attend(&query, &key, values, bias)?;
        self.output.forward_added(&attended, residual)
    }

    /// Like [`MultiheadAttention::forward_added`], without a residual.
    pub fn forward(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (query, key) = (queries.apply(&self.query)?, keys.apply(&self.key)?);
        self.attend(&query, &key, values, bias)?.apply(&self.output)
    }

    /// Like [`MultiheadAttention::forward_added`], with queries and keys that are already projected.
    pub fn forward_projected(
        &self,
        query: &Tensor,
        key: &Tensor,
        values: &Tensor,
        residual: &Tensor,
    ) -> Result<Tensor> {
        let attended = self.attend(query, key, values, None)?;
        self.output.forward_added(&attended, residual)
    }

    fn attend(
        &self,
        query: &Tensor,
        key: &Tensor,
        values: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let value = values.apply(&self.value)?;
        ops::attention(query, key, &value, bias, self.heads)
    }
}
