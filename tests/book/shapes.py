"""The pictures of shapes in the book's screenshots."""

import random
import sys
from pathlib import Path
from typing import NamedTuple

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "models/demo/training"))

from scenes import COLOUR_NAMES, COLOURS, shape_mask  # noqa: E402

class Item(NamedTuple):
    """A shape: the position of its centre and its size in shares of the picture's width, and its rotation in radians."""

    colour: str
    kind: str
    x: float
    y: float
    size: float
    rotation: float = 0.0


class Scene(NamedTuple):
    """Shapes on a plain background: a screenshot has few colours, so it needs few bytes."""

    size: tuple[int, int]
    background: tuple[int, int, int]
    items: tuple[Item, ...]

    def draw(self) -> Image.Image:
        """The picture."""
        picture = Image.new("RGB", self.size, self.background)
        for item in self.items:
            picture.paste(COLOURS[item.colour], mask=self.mask_of(item))
        return picture

    def mask_of(self, item: Item) -> Image.Image:
        """The share of a shape in each pixel, 0 to 255."""
        width = self.size[0]
        side = round(item.size * width)
        mask = Image.new("L", self.size)
        corner = round(item.x * width - side / 2), round(item.y * width - side / 2)
        mask.paste(Image.fromarray(shape_mask(item.kind, side, item.rotation)), corner)
        return mask

    def save(self, path: Path) -> Path:
        """Writes the picture as a PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.draw().save(path)
        return path


KINDS = ("circle", "star", "square", "heart", "hexagon")
DARK, LIGHT = (84, 98, 110), (196, 203, 208)

# two circles and two stars, and two other shapes
SHAPES = Scene(
    (960, 640),
    DARK,
    (
        Item("red", "circle", 0.17, 0.195, 0.228),
        Item("yellow", "star", 0.514, 0.171, 0.284, -0.05),
        Item("green", "square", 0.82, 0.182, 0.196),
        Item("white", "star", 0.189, 0.481, 0.28, 0.03),
        Item("purple", "heart", 0.512, 0.48, 0.2, -0.1),
        Item("cyan", "circle", 0.809, 0.482, 0.207),
    ),
)
# the pages of a task with several
PAGES = (
    SHAPES,
    Scene(
        (960, 640),
        DARK,
        (
            Item("orange", "hexagon", 0.19, 0.2, 0.21),
            Item("pink", "circle", 0.5, 0.22, 0.23),
            Item("blue", "square", 0.81, 0.2, 0.2),
            Item("yellow", "circle", 0.34, 0.49, 0.23),
            Item("white", "star", 0.69, 0.48, 0.28, 0.05),
        ),
    ),
    Scene((960, 640), DARK, (Item("green", "heart", 0.3, 0.33, 0.24, -0.1), Item("red", "star", 0.68, 0.33, 0.3, 0.03))),
)


# many shapes that are small in the whole picture
SMALL = Scene(
    (2400, 1600),
    LIGHT,
    tuple(
        Item(COLOUR_NAMES[(5 * column + 3 * row) % 9], KINDS[(column + 2 * row) % len(KINDS)], 0.1 * column + 0.1, 0.11 * row + 0.06, 0.06)
        for row in range(6)
        for column in range(9)
    ),
)
# a part of it with nine shapes, in shares of the picture
PART = (0.45, 0.33, 0.75, 0.83)


def random_scene(rng: random.Random, pairs: list[tuple[str, str]]) -> Scene:
    """Six shapes of these colours and kinds, so small that the demo models miss some."""
    cells = rng.sample([(column, row) for row in range(3) for column in range(4)], 6)
    background = tuple(rng.randint(70, 130) for _ in range(3))

    def item(column: int, row: int) -> Item:
        colour, kind = rng.choice(pairs)
        place = [(cell + rng.uniform(0.4, 0.6)) / 4 for cell in (column, row)]
        return Item(colour, kind, place[0], place[1] * 0.9, rng.uniform(0.085, 0.2), rng.uniform(-0.4, 0.4))

    return Scene((480, 320), background, tuple(item(*cell) for cell in cells))
