//! The geometry of a batch's feature maps: their sizes, the image and padding parts, and the positions derived from
//! them. All of it is computed on the host and then uploaded.

use std::f32::consts::TAU;
use std::sync::{Arc, OnceLock};

use candle_core::{Device, Result, Tensor};

/// A feature map's size, and for each image the part of it that is not padding.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// Rows of the map.
    pub height: usize,
    /// Columns of the map.
    pub width: usize,
    /// For each image, the `(rows, columns)` that are not padding, counted from the top left.
    pub valid: Vec<(usize, usize)>,
}

impl Level {
    /// Number of tokens of one image on this level.
    pub fn tokens(&self) -> usize {
        self.height * self.width
    }

    /// The valid share of the level, `(width, height)` in 0..1 (`get_valid_ratio`).
    fn valid_ratio(&self, image: usize) -> (f32, f32) {
        let (rows, columns) = self.valid[image];
        (
            columns as f32 / self.width as f32,
            rows as f32 / self.height as f32,
        )
    }
}

/// The levels of a batch, the finest first. Clones share the computed tensors.
#[derive(Debug, Clone)]
pub struct Pyramid {
    levels: Vec<Level>,
    batch: usize,
    reference_points: Arc<OnceLock<Tensor>>,
    proposals: Arc<OnceLock<(Tensor, Tensor)>>,
}

/// The position of a token: image, level, row and column.
struct TokenPosition<'a> {
    image: usize,
    level_index: usize,
    level: &'a Level,
    y: usize,
    x: usize,
}

impl TokenPosition<'_> {
    fn is_valid(&self) -> bool {
        let (rows, columns) = self.level.valid[self.image];
        self.y < rows && self.x < columns
    }
}

impl Pyramid {
    /// Describes the maps of a batch. `padded` is the batch's `(height, width)` in pixels, `valid` the size of each
    /// image inside it, and `shapes` the size of each feature map.
    pub fn new(
        padded: (usize, usize),
        valid: &[(usize, usize)],
        shapes: &[(usize, usize)],
    ) -> Self {
        let levels = shapes
            .iter()
            .map(|&(height, width)| Level {
                height,
                width,
                valid: valid
                    .iter()
                    .map(|&(rows, columns)| {
                        let rows = nearest_extent(rows, padded.0, height);
                        (rows, nearest_extent(columns, padded.1, width))
                    })
                    .collect(),
            })
            .collect();
        let batch = valid.len();
        Self {
            levels,
            batch,
            reference_points: Arc::default(),
            proposals: Arc::default(),
        }
    }

    /// The levels, the finest first.
    pub fn levels(&self) -> &[Level] {
        &self.levels
    }

    /// Number of tokens of one image over all levels: N.
    pub fn tokens(&self) -> usize {
        self.levels.iter().map(Level::tokens).sum()
    }

    /// `[B, N]`: 1 for image and 0 for padding; `None` if there is no padding.
    pub fn token_mask(&self, device: &Device) -> Result<Option<Tensor>> {
        let mask: Vec<f32> = self
            .token_positions()
            .map(|token| f32::from(u8::from(token.is_valid())))
            .collect();
        if mask.iter().all(|valid| *valid == 1.0) {
            return Ok(None);
        }
        Tensor::from_vec(mask, (self.batch, self.tokens()), device).map(Some)
    }

    /// `[B, L, 2]`: the valid share of each level, `(width, height)` in 0..1.
    pub fn valid_ratios(&self, device: &Device) -> Result<Tensor> {
        let ratios: Vec<f32> = (0..self.batch)
            .flat_map(|image| {
                self.levels
                    .iter()
                    .map(move |level| level.valid_ratio(image))
            })
            .flat_map(|(width, height)| [width, height])
            .collect();
        Tensor::from_vec(ratios, (self.batch, self.levels.len(), 2), device)
    }

    /// `[B, N, dim]`: sine positions (`GroundingDinoSinePositionEmbedding`). The first half of the channels encodes
    /// y, the second half x, each normalised to 0..2 pi over the valid area.
    pub fn sine_positions(&self, dim: usize, temperature: f32, device: &Device) -> Result<Tensor> {
        let divisors = sine_divisors(dim / 2, temperature);
        let mut positions = Vec::with_capacity(self.batch * self.tokens() * dim);
        for token in self.token_positions() {
            let (rows, columns) = token.level.valid[token.image];
            // the number of valid cells up to this one, and their total; the reference computes them as sums of the
            // mask
            let cells_up_to = |is_inside: bool, count: usize, total: usize| {
                if is_inside {
                    (count.min(total), total)
                } else {
                    (0, 0)
                }
            };
            for (count, total) in [
                cells_up_to(token.x < columns, token.y + 1, rows),
                cells_up_to(token.y < rows, token.x + 1, columns),
            ] {
                let angle = count as f32 / (total as f32 + 1e-6) * TAU;
                push_sines(angle, &divisors, &mut positions);
            }
        }
        Tensor::from_vec(positions, (self.batch, self.tokens(), dim), device)
    }

    /// `[B, N, L, 2]`: the centre `(x, y)` of every token, 0..1 of the valid area, in the coordinates of each level
    /// (`get_reference_points`).
    pub fn reference_points(&self, device: &Device) -> Result<Tensor> {
        if let Some(points) = self.reference_points.get()
            && points.device().same_device(device)
        {
            return Ok(points.clone());
        }
        let points = self.compute_reference_points(device)?;
        // cached for the first device that requests it
        let _ = self.reference_points.set(points.clone());
        Ok(points)
    }

    fn compute_reference_points(&self, device: &Device) -> Result<Tensor> {
        let mut points = Vec::with_capacity(self.batch * self.tokens() * self.levels.len() * 2);
        for token in self.token_positions() {
            let (ratio_x, ratio_y) = token.level.valid_ratio(token.image);
            let x = (token.x as f32 + 0.5) / (ratio_x * token.level.width as f32);
            let y = (token.y as f32 + 0.5) / (ratio_y * token.level.height as f32);
            for level in &self.levels {
                let (ratio_x, ratio_y) = level.valid_ratio(token.image);
                points.extend([x * ratio_x, y * ratio_y]);
            }
        }
        let shape = (self.batch, self.tokens(), self.levels.len(), 2);
        Tensor::from_vec(points, shape, device)
    }

    /// A box around the centre of every token as logits of cxcywh, `[B, N, 4]` (infinite if the proposal is not
    /// usable), and `[B, N, 1]` with 1 for usable proposals (`generate_encoder_output_proposals`).
    pub fn proposals(&self, device: &Device) -> Result<(Tensor, Tensor)> {
        if let Some(proposals) = self.proposals.get()
            && proposals.0.device().same_device(device)
        {
            return Ok(proposals.clone());
        }
        let proposals = self.compute_proposals(device)?;
        // cached for the first device that requests it
        let _ = self.proposals.set(proposals.clone());
        Ok(proposals)
    }

    fn compute_proposals(&self, device: &Device) -> Result<(Tensor, Tensor)> {
        let (mut logits, mut usable) = (vec![], vec![]);
        for token in self.token_positions() {
            let (rows, columns) = token.level.valid[token.image];
            let side = 0.05 * 2f32.powi(token.level_index as i32);
            let proposal = [
                (token.x as f32 + 0.5) / columns as f32,
                (token.y as f32 + 0.5) / rows as f32,
                side,
                side,
            ];
            let is_usable = token.is_valid() && proposal.iter().all(|p| *p > 0.01 && *p < 0.99);
            usable.push(f32::from(u8::from(is_usable)));
            logits.extend(proposal.map(|p| {
                if is_usable {
                    (p / (1.0 - p)).ln()
                } else {
                    f32::INFINITY
                }
            }));
        }
        let tokens = self.tokens();
        Ok((
            Tensor::from_vec(logits, (self.batch, tokens, 4), device)?,
            Tensor::from_vec(usable, (self.batch, tokens, 1), device)?,
        ))
    }

    /// All tokens of the batch, in the order of the flattened sequence.
    fn token_positions(&self) -> impl Iterator<Item = TokenPosition<'_>> {
        (0..self.batch).flat_map(move |image| {
            self.levels
                .iter()
                .enumerate()
                .flat_map(move |(level_index, level)| {
                    (0..level.tokens()).map(move |i| TokenPosition {
                        image,
                        level_index,
                        level,
                        y: i / level.width,
                        x: i % level.width,
                    })
                })
        })
    }
}

/// The number of `cells` that sample a valid pixel if a mask of `padded` pixels, `valid` of them set, is resized with
/// nearest-neighbour sampling (`torch.nn.functional.interpolate`).
fn nearest_extent(valid: usize, padded: usize, cells: usize) -> usize {
    let scale = padded as f32 / cells as f32;
    (0..cells)
        .take_while(|cell| ((*cell as f32 * scale) as usize).min(padded - 1) < valid)
        .count()
}

/// `temperature ^ (2 floor(i / 2) / dim)` for the `dim` channels of one coordinate.
pub(super) fn sine_divisors(dim: usize, temperature: f32) -> Vec<f32> {
    (0..dim)
        .map(|i| temperature.powf((2 * (i / 2)) as f32 / dim as f32))
        .collect()
}

/// Appends the sine (even channels) and the cosine (odd channels) of an angle divided by each divisor.
fn push_sines(angle: f32, divisors: &[f32], out: &mut Vec<f32>) {
    out.extend(divisors.iter().enumerate().map(|(i, divisor)| {
        let angle = angle / divisor;
        if i % 2 == 0 { angle.sin() } else { angle.cos() }
    }));
}

/// Sine embedding of coordinates on the device (`get_sine_pos_embed`): `[..., 1]` to `[..., dim]`.
pub(super) fn sine_embedding(position: &Tensor, dim: usize, temperature: f32) -> Result<Tensor> {
    // sin in the even channels and cos in the odd ones; each pair shares a divisor
    let divisors: Vec<f32> = sine_divisors(dim, temperature)
        .into_iter()
        .step_by(2)
        .collect();
    let divisors = Tensor::new(divisors, position.device())?;
    let angles = (position * f64::from(TAU))?.broadcast_div(&divisors)?;
    let rank = angles.rank();
    Tensor::stack(&[angles.sin()?, angles.cos()?], rank)?.flatten(rank - 1, rank)
}
