//! Splits maps into windows and channels into heads, and back.

use candle_core::{Result, Tensor};

use super::{Argument, Grid, empty, launch, size, step};
use crate::models::ops::Windows;

/// `Windows` of `windows.cu`.
#[derive(Debug, Default, Clone, Copy)]
pub(in crate::models::ops) struct Geometry {
    height: u32,
    width: u32,
    pub(super) rows: u32,
    pub(super) columns: u32,
    pub(super) down: u32,
    pub(super) across: u32,
    pub(super) shift: u32,
}

impl Geometry {
    pub(super) fn new(windows: Windows) -> Result<Self> {
        Ok(Self {
            height: size(windows.height)?,
            width: size(windows.width)?,
            rows: size(windows.window_height)?,
            columns: size(windows.window_width)?,
            down: size(windows.height.div_ceil(windows.window_height))?,
            across: size(windows.width.div_ceil(windows.window_width))?,
            shift: size(windows.shift)?,
        })
    }

    fn arguments(&self) -> [Argument<'static>; 7] {
        [
            self.height,
            self.width,
            self.rows,
            self.columns,
            self.down,
            self.across,
            self.shift,
        ]
        .map(Argument::Size)
    }
}

/// Describes tokens `[B, N, C]` as one window per image.
pub(super) fn of_tokens(batch: usize, tokens: usize) -> Windows {
    Windows {
        batch,
        height: 1,
        width: tokens,
        window_height: 1,
        window_width: tokens,
        shift: 0,
    }
}

/// Splits maps `[B, H, W, parts * heads * D]`, or tokens in the same order, into `[parts, windows, heads, N, D]`, and
/// multiplies the first part by `scale`. Positions beyond the map's edge get `padding_token` `[parts * heads * D]`, or
/// zeros.
pub(super) fn to_windows(
    xs: &Tensor,
    padding_token: Option<&Tensor>,
    windows: Windows,
    (parts, heads): (usize, usize),
    scale: f64,
) -> Result<Tensor> {
    let xs = xs.contiguous()?;
    let padding_token = padding_token.map(Tensor::contiguous).transpose()?;
    let all = xs.dim(candle_core::D::Minus1)?;
    let (count, tokens, channels) = (windows.count(), windows.tokens(), all / (parts * heads));
    let fits = xs.elem_count() == windows.batch * windows.height * windows.width * all
        && all == parts * heads * channels
        && padding_token
            .as_ref()
            .is_none_or(|padding_token| padding_token.elem_count() == all);
    if !fits {
        candle_core::bail!(
            "windows: input {:?}, {heads} heads and {windows:?} do not fit",
            xs.dims()
        )
    }
    // the kernel counts threads in 32 bits
    size(parts * count * heads * tokens * channels + 256)?;
    let out = empty(&[parts, count, heads, tokens, channels][..], &xs)?;
    let mut arguments = vec![
        Argument::Tensor(&xs),
        padding_token.as_ref().into(),
        Argument::Tensor(&out),
    ];
    arguments.extend(Geometry::new(windows)?.arguments());
    let step = step(channels, [&xs].into_iter().chain(&padding_token));
    for number in [step, count, parts, heads, channels] {
        arguments.push(Argument::Size(size(number)?));
    }
    arguments.push(Argument::Number(scale as f32));
    let grid = Grid::of_threads(out.elem_count() / step);
    // SAFETY: these are the kernel's arguments; the input's size is checked above, and `out` is new and has room for
    // every element of every window
    #[allow(unsafe_code)]
    unsafe {
        launch("to_windows", &xs, grid, &arguments)?;
    }
    Ok(out)
}

/// The inverse of [`to_windows`] for one part: `[windows, heads, N, D]` to `[B, H, W, heads * D]`.
pub(super) fn from_windows(xs: &Tensor, windows: Windows) -> Result<Tensor> {
    let xs = xs.contiguous()?;
    let (count, heads, tokens, channels) = xs.dims4()?;
    if (count, tokens) != (windows.count(), windows.tokens()) {
        candle_core::bail!("windows: input {:?} and {windows:?} do not fit", xs.dims())
    }
    let (batch, height, width) = (windows.batch, windows.height, windows.width);
    let out = empty((batch, height, width, heads * channels), &xs)?;
    let mut arguments = vec![Argument::Tensor(&xs), Argument::Tensor(&out)];
    arguments.extend(Geometry::new(windows)?.arguments());
    let step = step(channels, [&xs]);
    for number in [step, batch * height * width, heads, channels] {
        arguments.push(Argument::Size(size(number)?));
    }
    // the kernel counts threads in 32 bits
    size(out.elem_count() + 256)?;
    let grid = Grid::of_threads(out.elem_count() / step);
    // SAFETY: these are the kernel's arguments; the windows and tokens are those of the map, and `out` is new
    #[allow(unsafe_code)]
    unsafe {
        launch("from_windows", &xs, grid, &arguments)?;
    }
    Ok(out)
}
