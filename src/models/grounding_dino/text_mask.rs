//! The attention mask of the text: the tokens of a phrase attend only to each other.

use candle_core::{DType, Device, Result, Tensor};

use crate::models::ops::MASKED;

/// The tokens that end a phrase: `[CLS]`, `[SEP]`, `.` and `?` of BERT's uncased vocabulary
/// (`SPECIAL_TOKENS` of the reference).
pub const SEPARATORS: [u32; 4] = [101, 102, 1012, 1029];

/// A batch of captions as token ids, padded to the longest, and the tensors that the model derives from them.
#[derive(Debug, Clone)]
pub struct TextTokens {
    /// `[B, T]`, u32.
    pub input_ids: Tensor,
    /// `[B, T]`, u32: 1 for a token, 0 for padding.
    pub attention_mask: Tensor,
    /// `[B, T]`, u32: the position of each token within its phrase.
    pub position_ids: Tensor,
    /// `[B, 1, T, T]`, f32: 0 if two tokens belong to the same phrase, else [`MASKED`].
    pub phrase_bias: Tensor,
}

impl TextTokens {
    /// Builds the tensors from the token ids of each caption, without padding. Shorter captions are padded with
    /// `[PAD]`, id 0.
    ///
    /// # Errors
    /// If `captions` is empty, or all of them are.
    pub fn new(captions: &[Vec<u32>], device: &Device) -> Result<Self> {
        let batch = captions.len();
        let length = captions.iter().map(Vec::len).max().unwrap_or(0);
        if length == 0 {
            candle_core::bail!("the captions have no tokens")
        }
        let (mut ids, mut mask) = (vec![], vec![]);
        let (mut positions, mut bias) = (vec![], vec![]);
        for caption in captions {
            let padding = length - caption.len();
            let mut row = caption.clone();
            row.resize(length, 0);
            let (row_bias, row_positions) = phrase_blocks(&row);
            mask.extend(std::iter::repeat_n(1u32, caption.len()));
            mask.extend(std::iter::repeat_n(0u32, padding));
            ids.extend(row);
            bias.extend(row_bias);
            positions.extend(row_positions);
        }
        Ok(Self {
            input_ids: Tensor::from_vec(ids, (batch, length), device)?,
            attention_mask: Tensor::from_vec(mask, (batch, length), device)?,
            position_ids: Tensor::from_vec(positions, (batch, length), device)?,
            phrase_bias: Tensor::from_vec(bias, (batch, 1, length, length), device)?,
        })
    }

    /// `[B, 1, T]`: 0 for a token, [`MASKED`] for padding.
    pub fn padding_bias(&self, dtype: DType) -> Result<Tensor> {
        let padding = self.attention_mask.eq(0u32)?.to_dtype(DType::F32)?;
        (padding.unsqueeze(1)? * f64::from(MASKED))?.to_dtype(dtype)
    }
}

/// The additive mask, row by row, and the position ids of one padded row of token ids
/// (`generate_masks_with_special_tokens_and_transfer_map`).
///
/// A separator ends the block of tokens that follows the previous separator. Tokens outside all blocks attend only to
/// themselves. A separator in the first or last position ends no block. So the words after the last dot of a
/// truncated caption are alone, as in the reference.
fn phrase_blocks(ids: &[u32]) -> (Vec<f32>, Vec<u32>) {
    let length = ids.len();
    let mut bias = vec![MASKED; length * length];
    let mut positions = vec![0; length];
    for i in 0..length {
        bias[i * length + i] = 0.0;
    }
    let mut previous = 0;
    for (column, _) in ids
        .iter()
        .enumerate()
        .filter(|(_, id)| SEPARATORS.contains(id))
    {
        if column != 0 && column != length - 1 {
            for i in previous + 1..=column {
                positions[i] = (i - previous - 1) as u32;
                bias[i * length + previous + 1..=i * length + column].fill(0.0);
            }
        }
        previous = column;
    }
    (bias, positions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_attend_to_their_own_phrase_and_positions_start_at_zero() {
        // [CLS] a cat . dog ? [SEP]
        let (bias, positions) = phrase_blocks(&[101, 7, 8, 1012, 9, 1029, 102]);
        assert_eq!(positions, [0, 0, 1, 2, 0, 1, 0]);
        let visible: Vec<String> = bias
            .chunks(7)
            .map(|row| {
                row.iter()
                    .map(|b| if *b == 0.0 { '#' } else { '.' })
                    .collect()
            })
            .collect();
        assert_eq!(
            visible,
            [
                "#......", ".###...", ".###...", ".###...", "....##.", "....##.", "......#"
            ]
        );
    }
}
