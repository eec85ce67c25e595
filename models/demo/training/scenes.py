"""Synthetic scenes for the demo models: coloured shapes on noisy backgrounds.

Every scene has exact boxes and masks. Run the file to draw an overview of eight
scenes with their boxes::

    python scenes.py sheet.png
"""

import argparse
import math
import random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 214),
    "yellow": (250, 214, 40),
    "orange": (247, 134, 28),
    "purple": (128, 50, 170),
    "pink": (250, 140, 190),
    "brown": (124, 76, 40),
    "black": (24, 24, 24),
    "white": (246, 246, 246),
    "cyan": (50, 200, 220),
    "gray": (130, 130, 130),
}
COLOUR_NAMES = list(COLOURS)
SHAPE_NAMES = [
    "circle", "square", "triangle", "star", "heart", "cross",
    "ring", "diamond", "hexagon", "moon", "arrow", "rectangle",
]
# Side of the square canvas of a shape, as a fraction of the shorter side of the scene.
MIN_SIZE, MAX_SIZE = 0.2, 0.45


class Shape(NamedTuple):
    """One visible shape of a scene."""

    colour: str
    shape: str
    mask: np.ndarray  # bool, (height, width): the visible part
    box: tuple  # (x0, y0, x1, y1) of the visible part, in pixels


def regular_polygon(corners, rotation=0.0, radius=1.0):
    """Corners of a regular polygon around the origin, starting at the top."""
    angles = [rotation + 2 * math.pi * i / corners for i in range(corners)]
    return [(radius * math.sin(a), -radius * math.cos(a)) for a in angles]


def shape_mask(kind, size, rotation, supersampling=3):
    """Coverage (uint8, size x size) of one shape, drawn with supersampling."""
    n = size * supersampling
    image = Image.new("L", (n, n), 0)
    draw = ImageDraw.Draw(image)
    c, r = n / 2, n / 2 * 0.98

    def polygon(points):
        cos, sin = math.cos(rotation), math.sin(rotation)
        draw.polygon(
            [(c + r * (x * cos - y * sin), c + r * (x * sin + y * cos)) for x, y in points],
            fill=255,
        )

    def disc(x, y, radius, fill):
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)

    if kind == "circle":
        disc(c, c, r, 255)
    elif kind == "ring":
        disc(c, c, r, 255)
        disc(c, c, r * 0.55, 0)
    elif kind == "moon":
        disc(c, c, r, 255)
        disc(c + r * 0.55 * math.cos(rotation), c + r * 0.55 * math.sin(rotation), r * 0.85, 0)
    elif kind == "square":
        polygon([(-0.72, -0.72), (0.72, -0.72), (0.72, 0.72), (-0.72, 0.72)])
    elif kind == "rectangle":
        polygon([(-0.92, -0.4), (0.92, -0.4), (0.92, 0.4), (-0.92, 0.4)])
    elif kind == "diamond":  # always upright
        draw.polygon([(c, c - r), (c + 0.6 * r, c), (c, c + r), (c - 0.6 * r, c)], fill=255)
    elif kind == "triangle":
        polygon(regular_polygon(3))
    elif kind == "hexagon":
        polygon(regular_polygon(6))
    elif kind == "star":
        outer, inner = regular_polygon(5), regular_polygon(5, math.pi / 5, 0.42)
        polygon([point for pair in zip(outer, inner) for point in pair])
    elif kind == "cross":
        a = 0.3
        polygon([
            (-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a),
            (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a),
        ])
    elif kind == "arrow":
        polygon([
            (0, -1), (0.7, -0.2), (0.25, -0.2), (0.25, 0.95),
            (-0.25, 0.95), (-0.25, -0.2), (-0.7, -0.2),
        ])
    elif kind == "heart":
        points = []
        for k in range(60):
            t = 2 * math.pi * k / 60
            x = 16 * math.sin(t) ** 3
            y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
            points.append((x / 17, -(y + 2.5) / 17))
        polygon(points)
    else:
        raise ValueError(f"unknown shape: {kind}")
    return np.asarray(image.resize((size, size), Image.BOX))


def background(rng, width, height, max_noise=8):
    """A colour gradient with soft blotches and a little grain; float (height, width, 3)."""
    base = np.array([rng.randint(60, 225) for _ in range(3)], np.float32)
    other = np.clip(base + np.array([rng.randint(-50, 50) for _ in range(3)]), 0, 255)
    if rng.random() < 0.5:
        ramp = np.linspace(0, 1, width)[None, :, None]
    else:
        ramp = np.linspace(0, 1, height)[:, None, None]
    image = base + (other - base) * ramp.astype(np.float32)
    image = np.broadcast_to(image, (height, width, 3))
    noise = np.random.RandomState(rng.randrange(1 << 30))
    cell = rng.choice([4, 8, 16, 32])
    blotches = noise.rand(max(2, height // cell), max(2, width // cell), 3) * rng.choice([0, 20, 40, 60])
    blotches = Image.fromarray(blotches.astype(np.uint8)).resize((width, height), Image.BICUBIC)
    blotches = np.asarray(blotches, np.float32)
    grain = noise.randn(height, width, 1).astype(np.float32) * min(max_noise, rng.choice([0, 3, 8]))
    return np.clip(image + blotches - blotches.mean() + grain, 0, 255)


def overlap(a, b):
    """The area of the intersection of two squares (x, y, side)."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[2], b[1] + b[2]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0)


def scene(rng, width, height, max_objects=6, min_objects=1, max_size=MAX_SIZE, max_noise=8, wanted=None):
    """Draws one scene: an RGB image and its shapes. Later shapes cover earlier ones.

    If `wanted` is given, a list of (colour, shape), these are drawn instead of random ones.
    """
    image = background(rng, width, height, max_noise)
    mean = image.mean((0, 1))
    placed = []  # (x, y, size) of every canvas
    shapes = []  # [colour, kind, mask]
    count = len(wanted) if wanted else rng.randint(min_objects, max_objects)
    for index in range(count):
        for _attempt in range(12):
            size = int(min(width, height) * rng.uniform(MIN_SIZE, max_size))
            x = rng.randint(-size // 8, width - size + size // 8)
            y = rng.randint(-size // 8, height - size + size // 8)
            if all(overlap((x, y, size), p) < 0.12 * min(size, p[2]) ** 2 for p in placed):
                break
        else:
            continue
        colour, kind = wanted[index] if wanted else (rng.choice(COLOUR_NAMES), rng.choice(SHAPE_NAMES))
        rgb = np.array(COLOURS[colour], np.float32) + np.array([rng.gauss(0, 9) for _ in range(3)], np.float32)
        if np.abs(rgb - mean).sum() < 70:
            continue
        turns_freely = kind in ("arrow", "moon", "rectangle")
        rotation = rng.uniform(0, 2 * math.pi) if turns_freely else rng.uniform(-0.5, 0.5)
        alpha = shape_mask(kind, size, rotation).astype(np.float32) / 255
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + size, width), min(y + size, height)
        alpha = alpha[y0 - y:y1 - y, x0 - x:x1 - x]
        shade = 1 + np.linspace(-1, 1, height)[y0:y1, None, None] * rng.uniform(-0.12, 0.12)
        patch = image[y0:y1, x0:x1]
        patch += (np.clip(rgb * shade, 0, 255) - patch) * alpha[..., None]
        mask = np.zeros((height, width), bool)
        mask[y0:y1, x0:x1] = alpha > 0.5
        for other in shapes:
            other[2][mask] = False
        shapes.append([colour, kind, mask])
        placed.append((x, y, size))
    visible = []
    for colour, kind, mask in shapes:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if mask.sum() < 40:
            continue
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        visible.append(Shape(colour, kind, mask, box))
    picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    return picture, visible


def random_sides(rng, short=160, ratio=1.5):
    """Width and height of a scene: half of the scenes are square, the others up to `ratio` wide or high."""
    if rng.random() < 0.5:
        return short, short
    long = int(short * rng.uniform(1.05, ratio))
    return (long, short) if rng.random() < 0.5 else (short, long)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw an overview of eight scenes.")
    parser.add_argument("output", nargs="?", default="sheet.png")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    sheet = Image.new("RGB", (4 * 256, 2 * 256))
    for index in range(8):
        picture, shapes = scene(rng, 256, 256)
        draw = ImageDraw.Draw(picture)
        for item in shapes:
            draw.rectangle(item.box, outline=(255, 0, 255))
            draw.text(item.box[:2], f"{item.colour} {item.shape}")
        sheet.paste(picture, ((index % 4) * 256, (index // 4) * 256))
    sheet.save(args.output)
