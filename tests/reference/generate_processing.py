"""Generates the results of the reference around the models: resizing, normalising, decoding, tokens and run-length codes.

README.md describes each file.
"""

import argparse
import json
import random
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from pycocotools import mask as coco
from transformers import BertTokenizerFast, GroundingDinoImageProcessor, SamImageProcessor
from transformers.models.grounding_dino.image_processing_grounding_dino import get_size_with_aspect_ratio

from fixtures import HERE, run_exactly, write_json, write_tensors
from pictures import picture

OUT = HERE / "processing"

# picture -> the sizes (height, width) it is resized to
RESIZES = {
    "photo": [(61, 83), (30, 41), (47, 64), (7, 9), (20, 111), (66, 37)],
    "gradient": [(17, 23), (43, 61)],
    "checkerboard": [(16, 16), (21, 13), (33, 31), (40, 40)],
    "wide": [(6, 80), (3, 33), (12, 150)],
    "tall": [(80, 4), (31, 2), (110, 9)],
    "speck": [(1, 1), (5, 4), (40, 27)],
}

TEXTS = [
    "a cat. a remote control.",
    "Red Circle. BLUE Square.",
    "",
    "   ",
    "\n",
    ".",
    "...",
    "?",
    "is it a dog? yes.",
    "café. naïve résumé. Ünïcode",
    "cafe\u0301 with a combining accent",
    "ß Straße æther Øre Łódź İstanbul",
    "猫。犬。",
    "a 猫 and a 犬",
    "ねこ カタカナ 한국어",
    "Привет мир",
    "smile 😀. thumbs 👍🏽 up. family 👩‍👩‍👧",
    "3.14 1,000 2024-05-06 50% $9.99 #1",
    "well-known state-of-the-art e-mail",
    "the dog's toy isn't the players' toy “quoted” ‘single’",
    "line one\nline two\r\nline\tthree",
    "two  spaces   three",
    "zero\u200bwidth non\u00a0breaking soft\u00adhyphen \u0000null \ufffdreplacement",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "x" * 100 + " fits",
    "y" * 101 + " does not",
    "[CLS] [SEP] [MASK] [PAD] [UNK] [unused1] ##ing",
    "url https://example.com/a_b?c=d&e=f user@example.com C:\\dir",
    "a/b a_b a+b a=b (a) {b} <c> |d| ~e ^f `g`",
    "ﬁne ligature ½ ² ™ Ａ wide",
]


def pictures() -> dict[str, Image.Image]:
    """The input pictures of resizing and preprocessing."""
    rows, columns = np.mgrid[0:40, 0:57]
    gradient = np.stack([rows * 255 // 39, columns * 255 // 56, (rows + columns) * 255 // 95], axis=2)
    checkerboard = np.indices((32, 32)).sum(0) % 2 * 255
    return {
        "photo": picture(41, 61, 83, noise=20),
        "gradient": Image.fromarray(gradient.astype(np.uint8)),
        "checkerboard": Image.fromarray(np.repeat(checkerboard[..., None], 3, axis=2).astype(np.uint8)),
        "wide": picture(42, 9, 120),
        "tall": picture(43, 97, 5),
        "speck": picture(44, 3, 2),
    }


def pixels(image: Image.Image) -> torch.Tensor:
    """The pixels as u8 (height, width, 3)."""
    return torch.from_numpy(np.array(image.convert("RGB")))


def write_resizes(images: dict[str, Image.Image]) -> None:
    """Writes pictures resized with Pillow's antialiased bilinear filter."""
    tensors = {}
    for name, sizes in RESIZES.items():
        for height, width in sizes:
            resized = images[name].resize((width, height), Image.Resampling.BILINEAR)
            tensors[f"{name}.{height}x{width}"] = pixels(resized)
    write_tensors(OUT / "resize.safetensors", tensors)


def write_preprocessed(images: dict[str, Image.Image]) -> None:
    """Writes resized, rescaled, normalised and padded pixel values as float16."""
    detector = {"size": {"shortest_edge": 40, "longest_edge": 64}}
    segmenter = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}
    tensors = {}
    for name, names in {"single": ["photo"], "batch": ["gradient", "wide"]}.items():
        output = GroundingDinoImageProcessor(**detector)([images[n] for n in names], return_tensors="pt")
        tensors[f"detector.{name}.pixel_values"] = output["pixel_values"].half()
        tensors[f"detector.{name}.pixel_mask"] = output["pixel_mask"].to(torch.uint8)
    for name in ("photo", "tall"):
        output = SamImageProcessor(**segmenter)(images[name], return_tensors="pt")
        tensors[f"segmenter.{name}.pixel_values"] = output["pixel_values"].half()
        tensors[f"segmenter.{name}.original_size"] = output["original_sizes"][0]
        tensors[f"segmenter.{name}.reshaped_input_size"] = output["reshaped_input_sizes"][0]
    write_tensors(OUT / "preprocess.safetensors", tensors, config={"detector": detector, "segmenter": segmenter})


def write_sizes() -> None:
    """Writes the sizes after resizing, as rows (height, width, new height, new width)."""
    generator = random.Random(7)
    sizes = [(800, 800), (800, 1333), (1333, 800), (480, 640), (640, 480), (427, 640), (1080, 1920), (1024, 1024)]
    sizes += [(500, 1000), (1335, 2666), (2666, 1335), (1000, 500)]  # 666.5 and 667.5 before rounding
    sizes += [(3, 4000), (4000, 3), (1, 1), (1, 2), (7, 5), (799, 801), (801, 799), (1023, 1024), (683, 1024)]
    while len(sizes) < 200:
        longest = generator.choice([60, 400, 1000, 2000, 6000])
        sizes.append((generator.randint(20, longest), generator.randint(20, longest)))
    sam = SamImageProcessor()
    tables = {
        "detector": {"shortest_edge": 800, "longest_edge": 1333},
        "segmenter": {"longest_edge": 1024},
    }
    tables["detector"]["sizes"] = [[*size, *get_size_with_aspect_ratio(size, 800, 1333)] for size in sizes]
    tables["segmenter"]["sizes"] = [[*size, *sam._get_preprocess_shape(size, 1024)] for size in sizes]
    (OUT / "sizes.json").write_text(json.dumps(tables).replace("], [", "],\n[") + "\n", encoding="utf-8")


def write_rgb16_png(path: Path, values: np.ndarray) -> None:
    """Writes a 16-bit RGB PNG, which Pillow can read but not write."""
    height, width, _ = values.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def write_images(folder: Path) -> None:
    """Writes small images in the supported formats."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    base = picture(50, 17, 24, noise=3)
    base.paste((255, 0, 0), (0, 0, 9, 5))  # a red corner at the upper left makes every orientation different
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        base.save(folder / f"exif_{orientation}.jpg", quality=95, subsampling=0, exif=exif)
    base.save(folder / "subsampled.jpg", quality=85, subsampling=2)
    base.save(folder / "progressive.jpg", quality=95, subsampling=0, progressive=True)
    base.convert("L").save(folder / "grey.jpg", quality=95)
    base.convert("CMYK").save(folder / "cmyk.jpg", quality=95)

    ramp = np.linspace(0, 65535, 17 * 24 * 3).astype(np.uint16).reshape(17, 24, 3)
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 24).astype(np.uint8), (17, 1)))
    palette = base.quantize(16, dither=Image.Dither.NONE)
    base.save(folder / "rgb.png")
    base.convert("L").save(folder / "grey.png")
    base.convert("1").save(folder / "bilevel.png")
    Image.fromarray(ramp[..., 0]).save(folder / "grey16.png")
    write_rgb16_png(folder / "rgb16.png", ramp)
    palette.save(folder / "palette.png")
    palette.save(folder / "palette_transparent.png", transparency=bytes(range(0, 256, 16)))
    Image.merge("RGBA", (*base.split(), alpha)).save(folder / "rgba.png")
    Image.merge("LA", (base.convert("L"), alpha)).save(folder / "la.png")

    palette.save(folder / "palette.gif")
    palette.save(folder / "palette_transparent.gif", transparency=3)
    base.save(folder / "rgb.bmp")
    base.save(folder / "lossless.webp", lossless=True)
    base.save(folder / "lossy.webp", quality=90)
    Image.merge("RGBA", (*base.split(), alpha)).save(folder / "alpha.webp", lossless=True, exact=True)
    base.save(folder / "rgb.tiff")
    base.save(folder / "lzw.tiff", compression="tiff_lzw")


def upright_rgb(path: Path) -> torch.Tensor:
    """The pixels as they are shown: with EXIF orientation applied, alpha over white, 16 bits reduced to 8."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):
        image = Image.fromarray((np.array(image) // 256).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return pixels(image)


def write_tokens(bert_tokenizer: Path | None) -> None:
    """Writes token ids with special tokens. Lists of a tokenizer whose file is not given are not changed."""
    path = OUT / "tokens.json"
    lists = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    files = {"detector/tokenizer.json": HERE / "detector" / "tokenizer.json", "bert-base-uncased": bert_tokenizer}
    for name, file in files.items():
        if file is None:
            continue
        tokenizer = BertTokenizerFast(tokenizer_file=str(file))
        lists[name] = []
        for text in TEXTS:
            ids = tokenizer(text)["input_ids"]
            lists[name].append({"text": text, "ids": ids, "tokens": tokenizer.convert_ids_to_tokens(ids)})
    rows = ",\n".join(
        f"{json.dumps(name)}: [\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]" for name, rows in lists.items()
    )
    path.write_text("{\n" + rows + "\n}\n", encoding="utf-8")


def blob(height: int, width: int, waves: int) -> np.ndarray:
    """A mask with a wavy outline and a hole."""
    y, x = np.mgrid[0:height, 0:width]
    angle = np.arctan2(y - height / 2, x - width / 2)
    radius = np.hypot((y - height / 2) / height, (x - width / 2) / width)
    edge = 0.35 + 0.1 * np.sin(waves * angle)
    return (radius < edge) & (radius > 0.12)


def write_coco_rle() -> None:
    """Writes pycocotools' compressed run lengths: small masks as rows, large ones as column-major runs that start with zeros."""
    noise = np.random.RandomState(3)
    small = {
        "empty": np.zeros((5, 7), bool),
        "full": np.ones((5, 7), bool),
        "first pixel": np.arange(35).reshape(5, 7) == 0,
        "last pixel": np.arange(35).reshape(5, 7) == 34,
        "one pixel": np.arange(35).reshape(5, 7) == 17,
        "single row": np.array([[0, 1, 1, 0, 1]], bool),
        "single column": np.array([[0], [1], [1], [0], [1]], bool),
        "checkerboard": np.indices((8, 9)).sum(0) % 2 == 1,
        "random": noise.rand(13, 17) < 0.4,
        "sparse": noise.rand(40, 30) < 0.02,
        "blob": blob(24, 31, 3),
        "horizontal stripes": np.indices((20, 6))[0] // 7 % 2 == 0,
    }
    large = {
        "large blob": blob(300, 417, 5),
        "large rectangle": np.pad(np.ones((700, 500), bool), ((150, 174), (100, 424))),
        "tall ellipse": blob(640, 90, 0),
        "last pixel of a large mask": np.arange(1024 * 1024).reshape(1024, 1024) == 1024 * 1024 - 1,
        "large and full": np.ones((1024, 1024), bool),
    }
    vectors = []
    for name, mask in (small | large).items():
        encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        vector = {"name": name, "size": encoded["size"], "counts": encoded["counts"].decode()}
        if name in small:
            vector["rows"] = ["".join("#" if pixel else "." for pixel in row) for row in mask]
        else:
            vector["runs"] = runs(mask)
            again = coco.frPyObjects({"size": list(mask.shape), "counts": vector["runs"]}, *mask.shape)
            assert again["counts"] == encoded["counts"], name
        vectors.append(vector)
    write_json(OUT / "coco_rle.json", vectors, lines=True)


def runs(mask: np.ndarray) -> list[int]:
    """The lengths of runs of equal pixels in column-major order; the first run is zeros."""
    flat = np.concatenate([[False], mask.T.ravel()])
    starts = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], starts, [mask.size]])).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bert-tokenizer", type=Path, help="bert-base-uncased's tokenizer.json, for tokens.json")
    parser.add_argument("--brush-vectors", type=Path, help="JSON with brush RLE of the editor, which is copied")
    arguments = parser.parse_args()
    run_exactly()
    images = pictures()
    (OUT / "pictures").mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        image.save(OUT / "pictures" / f"{name}.png", optimize=True)
    write_resizes(images)
    write_preprocessed(images)
    write_sizes()
    write_images(OUT / "images")
    files = sorted((OUT / "images").iterdir())
    write_tensors(OUT / "images" / "expected.safetensors", {file.name: upright_rgb(file) for file in files})
    write_tokens(arguments.bert_tokenizer)
    write_coco_rle()
    if arguments.brush_vectors:
        (OUT / "brush_rle.json").write_bytes(arguments.brush_vectors.read_bytes())


if __name__ == "__main__":
    main()
