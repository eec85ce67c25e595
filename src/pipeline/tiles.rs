//! Which parts of an image are searched: regions of interest, and tiles for small objects.
//!
//! The detector scales every image to a fixed size, so an object of a few pixels in a large photograph is lost. In a tile,
//! the same object is several times as large. The whole area is always searched as well, because a tile shows only a part of
//! a large object.

use std::fmt;
use std::str::FromStr;

use crate::geometry::{ImageSize, Window};

/// How an area is divided into tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tiles {
    /// No tiles.
    #[default]
    Off,
    /// As many tiles as needed so that the detector shrinks none of them much.
    Auto,
    /// A number of columns and rows.
    Grid {
        /// Tiles side by side.
        columns: usize,
        /// Tiles one below the other.
        rows: usize,
    },
    /// Square tiles with at most this side, in pixels.
    Side(usize),
}

/// Tiles and their overlap.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tiling {
    /// How an area is divided.
    pub tiles: Tiles,
    /// The share of a tile's side that it has in common with its neighbour, 0..=[`MAX_OVERLAP`]. An object that is not
    /// larger than the overlap is whole in at least one tile.
    pub overlap: f32,
}

impl Default for Tiling {
    fn default() -> Self {
        Self {
            tiles: Tiles::Off,
            overlap: DEFAULT_OVERLAP,
        }
    }
}

/// The overlap of tiles unless a setting changes it.
pub const DEFAULT_OVERLAP: f32 = 0.2;
/// The largest overlap: with more, tiles would hardly advance.
pub const MAX_OVERLAP: f32 = 0.5;
/// The most columns, and the most rows, of tiles: each tile is one more run of the detector.
pub const MAX_TILES_PER_AXIS: usize = 8;
/// The smallest side of a tile, in pixels.
const MIN_SIDE: usize = 64;
/// With [`Tiles::Auto`], an area or tile that the detector scales by less than this is divided further.
const MIN_SCALE: f32 = 0.8;

/// A text that names no way of dividing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "it must be off, auto, columns and rows such as 2x2 (at most {MAX_TILES_PER_AXIS}x{MAX_TILES_PER_AXIS}), or the side of a tile in pixels, at least {MIN_SIDE}"
)]
pub struct InvalidTiles;

impl FromStr for Tiles {
    type Err = InvalidTiles;

    fn from_str(text: &str) -> Result<Self, InvalidTiles> {
        let text = text.trim().to_lowercase();
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| InvalidTiles);
        match text.as_str() {
            "off" | "none" | "0" | "1x1" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            other => match other.split_once(['x', '×']) {
                Some((columns, rows)) => {
                    let (columns, rows) = (number(columns)?, number(rows)?);
                    let fits = |count| (1..=MAX_TILES_PER_AXIS).contains(&count);
                    match fits(columns) && fits(rows) {
                        true => Ok(Self::Grid { columns, rows }),
                        false => Err(InvalidTiles),
                    }
                }
                None => match number(other)? {
                    side if side >= MIN_SIDE => Ok(Self::Side(side)),
                    _ => Err(InvalidTiles),
                },
            },
        }
    }
}

impl fmt::Display for Tiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Auto => f.write_str("auto"),
            Self::Grid { columns, rows } => write!(f, "{columns}x{rows}"),
            Self::Side(side) => write!(f, "{side}"),
        }
    }
}

impl Tiling {
    /// The windows to search in an area: the area itself, then its tiles, row by row. Without tiles it is the area alone.
    /// `input_size` is the size to which the detector scales an image of a size.
    pub fn windows(self, area: Window, input_size: impl Fn(ImageSize) -> ImageSize) -> Vec<Window> {
        let (columns, rows) = self.counts(area, input_size);
        let mut windows = vec![area];
        if columns * rows > 1 {
            let xs = self.axis(area.width, columns);
            for (y, height) in self.axis(area.height, rows) {
                windows.extend(xs.iter().map(|(x, width)| Window {
                    x: area.x + x,
                    y: area.y + y,
                    width: *width,
                    height,
                }));
            }
        }
        windows
    }

    /// The numbers of columns and rows.
    fn counts(self, area: Window, input_size: impl Fn(ImageSize) -> ImageSize) -> (usize, usize) {
        let most = |pixels: usize| MAX_TILES_PER_AXIS.min(pixels / MIN_SIDE).max(1);
        let (max_columns, max_rows) = (most(area.width), most(area.height));
        match self.tiles {
            Tiles::Off => (1, 1),
            Tiles::Grid { columns, rows } => (columns.min(max_columns), rows.min(max_rows)),
            Tiles::Side(side) => {
                let count = |pixels: usize| {
                    let step = side as f32 * (1.0 - self.overlap);
                    let further = (pixels.saturating_sub(side) as f32 / step).ceil();
                    1 + further as usize
                };
                (
                    count(area.width).min(max_columns),
                    count(area.height).min(max_rows),
                )
            }
            Tiles::Auto => {
                let (mut columns, mut rows) = (1, 1);
                loop {
                    let tile = ImageSize {
                        height: self.side(area.height, rows),
                        width: self.side(area.width, columns),
                    };
                    let scale = input_size(tile).width as f32 / tile.width as f32;
                    // divide the longer side, so that tiles stay close to a square
                    let by_columns = tile.width >= tile.height;
                    match (scale >= MIN_SCALE, by_columns) {
                        (false, true) if columns < max_columns => columns += 1,
                        (false, false) if rows < max_rows => rows += 1,
                        _ => return (columns, rows),
                    }
                }
            }
        }
    }

    /// The side of each of `count` overlapping tiles along `pixels`.
    fn side(self, pixels: usize, count: usize) -> usize {
        let steps = count as f32 - (count - 1) as f32 * self.overlap;
        ((pixels as f32 / steps).ceil() as usize).clamp(1, pixels)
    }

    /// The start and length of each of `count` tiles along `pixels`; together they cover it.
    fn axis(self, pixels: usize, count: usize) -> Vec<(usize, usize)> {
        let side = self.side(pixels, count);
        let gaps = (count - 1).max(1);
        let start = |i: usize| (i * (pixels - side) + gaps / 2) / gaps;
        (0..count).map(|i| (start(i), side)).collect()
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// As the published detectors: the short side to 800 pixels, the long side to at most 1333.
    fn input_size(size: ImageSize) -> ImageSize {
        let (short, long) = (size.height.min(size.width), size.height.max(size.width));
        let scale = (800.0 / short as f32).min(1333.0 / long as f32);
        ImageSize {
            height: (size.height as f32 * scale) as usize,
            width: (size.width as f32 * scale) as usize,
        }
    }

    fn area(width: usize, height: usize) -> Window {
        Window::whole(ImageSize { height, width })
    }

    fn windows(tiles: &str, area: Window) -> Vec<Window> {
        let tiling = Tiling {
            tiles: tiles.parse().unwrap(),
            ..Tiling::default()
        };
        tiling.windows(area, input_size)
    }

    #[test]
    fn tiles_are_parsed_and_printed() {
        for text in ["off", "auto", "2x3", "640"] {
            assert_eq!(text.parse::<Tiles>().unwrap().to_string(), text);
        }
        assert_eq!(" 4X2 ".parse::<Tiles>().unwrap().to_string(), "4x2");
        for text in ["", "2x", "x2", "0x2", "9x1", "63", "-1", "many", "2x2x2"] {
            assert_eq!(text.parse::<Tiles>(), Err(InvalidTiles), "{text}");
        }
    }

    #[test]
    fn tiles_cover_their_area_and_overlap() {
        for (tiles, size) in [
            ("2x2", (1000, 700)),
            ("3x1", (641, 333)),
            ("300", (1000, 700)),
            ("auto", (3264, 2448)),
            ("8x8", (100, 5000)),
        ] {
            let area = Window {
                x: 40,
                y: 30,
                ..area(size.0, size.1)
            };
            let windows = windows(tiles, area);
            assert_eq!(windows[0], area);
            let tiles = &windows[1..];
            assert!(tiles.len() > 1);
            for tile in tiles {
                assert!(tile.x >= area.x && tile.x + tile.width <= area.x + area.width);
                assert!(tile.y >= area.y && tile.y + tile.height <= area.y + area.height);
            }
            for x in (area.x..area.x + area.width).step_by(7) {
                assert!(tiles.iter().any(|t| (t.x..t.x + t.width).contains(&x)));
            }
            for y in (area.y..area.y + area.height).step_by(7) {
                assert!(tiles.iter().any(|t| (t.y..t.y + t.height).contains(&y)));
            }
            for pair in tiles.windows(2).filter(|pair| pair[0].y == pair[1].y) {
                let common = (pair[0].x + pair[0].width).saturating_sub(pair[1].x);
                assert!(common as f32 >= 0.19 * pair[0].width as f32, "{pair:?}");
            }
        }
    }

    #[test]
    fn automatic_tiles_are_as_few_as_the_scale_allows() {
        // hardly shrunk: no tiles
        assert_eq!(windows("auto", area(1300, 900)).len(), 1);
        // 8 megapixels
        assert_eq!(windows("auto", area(3264, 2448)).len(), 1 + 9);
        // a panorama is divided along its length only
        let panorama = windows("auto", area(6000, 900));
        assert!(panorama.len() > 3);
        assert!(panorama.iter().all(|window| window.height == 900));
        // huge images have a limit
        assert_eq!(windows("auto", area(40_000, 40_000)).len(), 1 + 64);
    }

    #[test]
    fn a_side_in_pixels_is_the_largest_side_of_a_tile() {
        assert_eq!(windows("640", area(640, 480)).len(), 1);
        let tiles = windows("640", area(1500, 1000));
        assert_eq!(tiles.len(), 1 + 3 * 2);
        assert!(tiles[1..].iter().all(|t| t.width <= 640 && t.height <= 640));
        // so small that it would give more tiles than allowed
        assert_eq!(windows("64", area(5000, 64)).len(), 1 + 8);
    }

    #[test]
    fn windows_of_any_size_are_inside_their_area() {
        let mut random = StdRng::seed_from_u64(3);
        for _ in 0..2000 {
            let side = |random: &mut StdRng| {
                let limit = [4, 70, 1000, 20_000][random.random_range(0..4)];
                random.random_range(1..=limit)
            };
            let area = Window {
                x: side(&mut random),
                y: side(&mut random),
                width: side(&mut random),
                height: side(&mut random),
            };
            let tiling = Tiling {
                tiles: match random.random_range(0..3) {
                    0 => Tiles::Auto,
                    1 => Tiles::Side(random.random_range(64..3000)),
                    _ => Tiles::Grid {
                        columns: random.random_range(1..=8),
                        rows: random.random_range(1..=8),
                    },
                },
                overlap: random.random_range(0.0..=MAX_OVERLAP),
            };
            let windows = tiling.windows(area, input_size);
            assert!(windows.len() <= 1 + MAX_TILES_PER_AXIS * MAX_TILES_PER_AXIS);
            for window in &windows {
                assert!(window.width > 0 && window.height > 0);
                assert!(window.x >= area.x && window.y >= area.y);
                assert!(
                    window.x + window.width <= area.x + area.width,
                    "{tiling:?} {area:?}"
                );
                assert!(
                    window.y + window.height <= area.y + area.height,
                    "{tiling:?} {area:?}"
                );
            }
        }
    }
}
