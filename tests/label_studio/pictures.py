"""Variations of examples/images/shapes.png."""

import base64
from pathlib import Path
from typing import List, Tuple

from api import SHAPES
from PIL import Image, ImageOps
from studio import ensure

ORIENTATION, ROTATE_RIGHT = 0x0112, 6


def varied(folder: Path, count: int, first: int = 0) -> List[Path]:
    """Creates pictures that differ slightly: cropped at the edges, every other one mirrored."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = Image.open(SHAPES).convert("RGB")
    paths = []
    for number in range(first, first + count):
        picture = shapes.crop((number % 20, number, shapes.width - number % 7, shapes.height - number % 3))
        if number % 2:
            picture = ImageOps.mirror(picture)
        paths.append(folder / f"shapes {number:02}.png")
        picture.save(paths[-1], compress_level=1)
    return paths


def rotated(path: Path) -> Path:
    """Creates a JPEG with rotated pixels, and an EXIF orientation with which it is shown upright."""
    shapes = Image.open(SHAPES).convert("RGB")
    exif = Image.Exif()
    exif[ORIENTATION] = ROTATE_RIGHT
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes.transpose(Image.Transpose.ROTATE_90).save(path, quality=97, exif=exif)
    stored = Image.open(path)
    upright = ImageOps.exif_transpose(stored)
    ensure(stored.size == shapes.size[::-1] and upright.size == shapes.size, f"{path} is not rotated")
    return path


def hidden(path: Path) -> Tuple[Path, Tuple[float, float, float, float]]:
    """Creates a picture of 8 megapixels with a small copy of the shapes. Returns it and their place, in shares of the picture."""
    width, height, small = 3264, 2448, (256, 192)
    left, top = 2100, 500
    picture = Image.new("RGB", (width, height), (120, 120, 120))
    picture.paste(Image.open(SHAPES).convert("RGB").resize(small, Image.LANCZOS), (left, top))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, compress_level=1)
    return path, (left / width, top / height, (left + small[0]) / width, (top + small[1]) / height)


def data_uri_of(path: Path, folder: Path) -> str:
    """A picture as a data URI, without writing beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / path.name
    copy.write_bytes(path.read_bytes())
    return data_uri(copy)


def data_uri(path: Path) -> str:
    """A picture as a data URI; as a JPEG, to be short."""
    jpeg = path.with_suffix(".uri.jpg")
    Image.open(path).save(jpeg, quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.read_bytes()).decode("ascii")
