"""Draws the detector's training scenes once, and writes them to a folder as NumPy files.

    python draw_scenes.py crowded/ --square 9500 --crowded
    python draw_scenes.py scenes/ --square 2500 --others 4200

Crowded scenes are square and have many shapes, so that every training step learns
more. The other scenes are square (160x160) or have one of six other sizes up to 3:2.
A fifth of all scenes are drawn larger and then reduced, as users' pictures are.

For each size there are `WxH.images.npy` (uint8, N x H x W x 3), `WxH.labels.npy`
(float32, N x 14 x 6: x0, y0, x1, y1 in pixels, colour, shape; colour -1 marks an
empty row) and `WxH.outlines.npy` (uint8, N x 14 x 16 x 16: the visible part of
every shape, scaled to its box).
"""

import argparse
import os
import random

import numpy as np
from PIL import Image

from scenes import COLOUR_NAMES, SHAPE_NAMES, scene

SQUARE = (160, 160)
OTHERS = [(181, 160), (213, 160), (240, 160), (160, 173), (160, 203), (160, 237)]
OUTLINE = 16  # side of the masks of shapes, each scaled to its box
ROWS = 14  # number of label rows; a scene that is not crowded has at most MAX_OBJECTS shapes
MAX_OBJECTS = 8


def draw(rng, width, height, crowded):
    """One scene of width x height: pixels, label rows and outlines."""
    scale = rng.uniform(1.4, 3.0) if rng.random() < 0.2 else 1.0
    sides = round(width * scale), round(height * scale)
    if crowded:
        picture, shapes = scene(rng, *sides, max_objects=ROWS, min_objects=8, max_size=0.42)
    else:
        picture, shapes = scene(rng, *sides, max_objects=MAX_OBJECTS)
    fx, fy = width / picture.width, height / picture.height
    if scale != 1.0:
        picture = picture.resize((width, height), Image.BILINEAR)
    labels = np.full((ROWS, 6), -1, np.float32)
    outlines = np.zeros((ROWS, OUTLINE, OUTLINE), np.uint8)
    for row, outline, item in zip(labels, outlines, shapes):
        x0, y0, x1, y1 = item.box
        row[:] = (
            x0 * fx, y0 * fy, x1 * fx, y1 * fy,
            COLOUR_NAMES.index(item.colour), SHAPE_NAMES.index(item.shape),
        )
        mask = Image.fromarray(item.mask.astype(np.uint8) * 255).crop(item.box)
        outline[:] = np.asarray(mask.resize((OUTLINE, OUTLINE), Image.BILINEAR))
    return np.asarray(picture, np.uint8), labels, outlines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("--square", type=int, default=2500, help="number of square scenes")
    parser.add_argument("--others", type=int, default=0, help="number of scenes of other sizes")
    parser.add_argument("--crowded", action="store_true", help="draw crowded scenes")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    os.makedirs(args.output, exist_ok=True)
    formats = [(SQUARE, args.square)] + [(size, args.others // len(OTHERS)) for size in OTHERS]
    for (width, height), count in formats:
        if not count:
            continue
        rng = random.Random(f"{args.seed} {width}x{height}")
        images = np.empty((count, height, width, 3), np.uint8)
        labels = np.empty((count, ROWS, 6), np.float32)
        outlines = np.empty((count, ROWS, OUTLINE, OUTLINE), np.uint8)
        for index in range(count):
            images[index], labels[index], outlines[index] = draw(rng, width, height, args.crowded)
        # Rename the images last: their final name marks a size as complete.
        base = os.path.join(args.output, f"{width}x{height}")
        np.save(base + ".labels.npy", labels)
        np.save(base + ".outlines.npy", outlines)
        np.save(base + ".new.npy", images)
        os.replace(base + ".new.npy", base + ".images.npy")
        print(f"{width}x{height}: {count} scenes", flush=True)


if __name__ == "__main__":
    main()
