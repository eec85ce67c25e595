"""Reads the datasets that `groundling predict --export` writes, with the tools that train on them.

    pip install -r tests/exports/requirements.txt
    cargo build --release
    python tests/exports/check.py [--groundling BINARY] [--out DIR]

Predicts the pictures of examples/images, and pictures made from them (turned by EXIF, transparent, grey, with equal and unusual
names), with the demo models. Every format must have the boxes, masks, scores and classes of the JSON of the same run. Prints one
line for each tool. torchvision and ultralytics are used if they are installed (requirements-trainers.txt). The exit code is 1 if
something differs.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples/images"
FORMATS = "coco,yolo,yolo-segments,masks"
# demo classes, one that is in no picture, and one whose name must be quoted in YAML
CLASSES = ["red circle", "blue star", "green triangle", "purple ring", "yellow heart", 'white "cross": #1']
EXIF_ORIENTATION = 0x0112
# COCO boxes are rounded to thousandths of a pixel, YOLO's numbers to millionths of the image
COCO_PIXELS = 0.002
YOLO_SHARE = 2e-6
# outlines are up to 0.2 % of the longer side away from the mask's boundary, and leave out parts and holes below 2 %
LEAST_IOU = 0.9
# decoders of JPEG round differently
JPEG_LEVELS = 4


class CheckFailed(Exception):
    """A failed check; the message says what is wrong."""


def require(condition: bool, message: str):
    """Ends the check with a message unless the condition holds."""
    if not condition:
        raise CheckFailed(message)


@dataclass
class Found:
    """What the JSON of groundling says about one image, and the name of the image in the exports."""

    path: Path
    file_name: str
    width: int
    height: int
    detections: list[dict]

    @property
    def name(self) -> str:
        """The file name without its extension."""
        return self.file_name.rsplit(".", 1)[0]

    def masks(self) -> list[np.ndarray]:
        """The masks of the detections."""
        return [coco_mask.decode(found["mask"]).astype(bool) for found in self.detections]

    def classes(self) -> list[int]:
        """The number of each detection's class, from 0."""
        return [CLASSES.index(found["phrase"]) for found in self.detections]

    def boxes(self) -> np.ndarray:
        """Left, top, right and bottom of each detection, in pixels."""
        return np.array([found["box"] for found in self.detections], dtype=np.float64).reshape(-1, 4)


def make_pictures(folder: Path) -> list[tuple[Path, str]]:
    """Makes pictures of each kind. Returns the pictures to predict, each with its expected name in the exports."""
    shapes = Image.open(EXAMPLES / "shapes.png").convert("RGB")
    pictures = [(EXAMPLES / "shapes.png", "shapes.png"), (EXAMPLES / "shapes-overlay.png", "shapes-overlay.png")]

    def add(name: str, expected: str, image: Image.Image, **options):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        image.save(path, **options)
        pictures.append((path, expected))

    add("a/Shapes.jpg", "Shapes-2.jpg", shapes, quality=95)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # to be turned by 90 degrees clockwise
    add("turned.jpg", "turned.png", shapes.transpose(Image.Transpose.ROTATE_90), exif=exif, quality=95)
    transparent = shapes.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(shapes.size))
    add("transparent.png", "transparent.png", transparent)
    add("grey ünï (1).png", "grey ünï (1).png", shapes.convert("L"))
    add("old.bmp", "old.png", shapes)
    add("b/nothing.webp", "nothing.webp", Image.new("RGB", (90, 70), (90, 120, 90)), lossless=True)
    return pictures


def predict(groundling: Path, pictures: list[tuple[Path, str]], out: Path) -> list[Found]:
    """Runs groundling on the pictures, with an export in each format."""
    report = out / "found.json"
    command = [
        str(groundling), "predict", *(str(path) for path, _ in pictures),
        "--prompt", ". ".join([*CLASSES[:-1], "-green star"]) + ". " + CLASSES[-1],
        "--detector", "demo", "--segmenter", "demo",
        "--export", str(out / "export"), "--export-format", FORMATS, "--output", str(report),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    require(done.returncode == 0, f"groundling ended with {done.returncode}:\n{done.stderr}")
    results = json.loads(report.read_text())["results"]
    require(len(results) == len(pictures), f"{len(results)} results for {len(pictures)} pictures")
    found = []
    for result, (path, file_name) in zip(results, pictures):
        require(result["image"] == str(path), f"{result['image']} instead of {path}")
        found.append(Found(path, file_name, result["width"], result["height"], result["detections"]))
    return found


def count(found: list[Found]) -> str:
    """The number of images and objects, for the line of a tool."""
    return f"{len(found)} images, {sum(len(image.detections) for image in found)} objects"


def largest(values: np.ndarray) -> float:
    """The largest absolute value; 0 without values."""
    return float(np.abs(values).max(initial=0.0))


def corners(boxes: np.ndarray) -> np.ndarray:
    """Left, top, right and bottom of boxes with left, top, width and height."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])


def check_images(found: list[Found], export: Path) -> str:
    """The image files have the pixels that were predicted, also for a reader that ignores the orientation."""
    linked = 0
    for image in found:
        original = Image.open(image.path)
        upright = ImageOps.exif_transpose(original)
        if upright.mode == "RGBA":
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright)
        expected = np.asarray(upright.convert("RGB"), dtype=int)
        for part in FORMATS.split(","):
            path = export / part / "images" / image.file_name
            written = Image.open(path)
            require(written.size == (image.width, image.height), f"{path} has the size {written.size}")
            difference = largest(np.asarray(written.convert("RGB"), dtype=int) - expected)
            limit = JPEG_LEVELS if original.format == "JPEG" else 1
            require(difference <= limit, f"{path} differs from {image.path} by {difference} levels")
            linked += path.stat().st_ino == image.path.stat().st_ino
        names = {path.name for path in (export / part / "images").iterdir()}
        require(names == {other.file_name for other in found}, f"{part} has the images {names}")
    return f"{len(found)} images in {len(FORMATS.split(','))} formats have the predicted pixels, {linked} files are links"


def check_coco(found: list[Found], export: Path) -> str:
    """pycocotools reads the boxes, masks, scores and classes of the JSON."""
    coco = quietly(lambda: COCO(export / "coco/annotations.json"))
    names = [category["name"] for category in coco.loadCats(coco.getCatIds())]
    require(names == CLASSES, f"the categories are {names}")
    require(len(coco.getImgIds()) == len(found), f"{len(coco.getImgIds())} images")
    difference = 0.0
    for number, image in enumerate(found, start=1):
        record = coco.loadImgs(number)[0]
        size = (record["file_name"], record["width"], record["height"])
        require(size == (image.file_name, image.width, image.height), f"image {number} is {size}")
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=number))
        require(len(annotations) == len(image.detections), f"{image.name} has {len(annotations)} annotations")
        for annotation, detection, mask in zip(annotations, image.detections, image.masks()):
            phrase = coco.loadCats(annotation["category_id"])[0]["name"]
            require(phrase == detection["phrase"], f"{image.name}: {phrase} instead of {detection['phrase']}")
            require(annotation["score"] == detection["score"], f"{image.name}: another score")
            require((coco.annToMask(annotation) == mask).all(), f"{image.name}: another mask of {phrase}")
            require(annotation["area"] == mask.sum(), f"{image.name}: the area is {annotation['area']}")
            require(annotation["iscrowd"] == 0, f"{image.name}: a crowd")
        boxes = corners([annotation["bbox"] for annotation in annotations])
        difference = max(difference, largest(boxes - image.boxes()))
    require(difference < COCO_PIXELS, f"a box differs by {difference} pixels")
    return f"{count(found)}: masks are equal, boxes differ by at most {difference:.4f} pixels"


def compare_yolo(image: Found, classes: list[int], boxes: np.ndarray) -> float:
    """Compares classes and boxes (centre and size, 0..1) with the JSON. Returns the largest difference."""
    require(classes == image.classes(), f"{image.name}: the classes are {classes}")
    centre, size = np.split(np.asarray(boxes, dtype=np.float64).reshape(-1, 4), 2, axis=1)
    shares = np.hstack([centre - size / 2, centre + size / 2])
    expected = image.boxes() / np.tile([image.width, image.height], 2)
    return largest(shares - expected)


def polygon_iou(image: Found, points: np.ndarray, mask: np.ndarray) -> float:
    """The IoU of an outline, with points in 0..1, with a mask."""
    pixels = points.reshape(-1, 2) * [image.width, image.height]
    encoded = coco_mask.frPyObjects([pixels.ravel().tolist()], image.height, image.width)
    filled = coco_mask.decode(encoded[0]).astype(bool)
    return float((filled & mask).sum() / (filled | mask).sum())


def check_yolo(found: list[Found], export: Path) -> str:
    """The text files have the boxes and the outlines of the JSON."""
    difference, least = 0.0, 1.0
    for image in found:
        rows = read_rows(export / "yolo/labels" / f"{image.name}.txt")
        require(all(len(row) == 5 for row in rows), f"{image.name}: a row without five numbers")
        boxes = np.array([row[1:] for row in rows])
        difference = max(difference, compare_yolo(image, [int(row[0]) for row in rows], boxes))
        rows = read_rows(export / "yolo-segments/labels" / f"{image.name}.txt")
        require([int(row[0]) for row in rows] == image.classes(), f"{image.name}: other outlines")
        for row, mask in zip(rows, image.masks()):
            points = np.array(row[1:])
            require(len(points) >= 6 and 0 <= points.min() and points.max() <= 1, f"{image.name}: {points}")
            least = min(least, polygon_iou(image, points, mask))
    require(difference < YOLO_SHARE, f"a box differs by {difference} of the image")
    require(least > LEAST_IOU, f"an outline has an IoU of only {least}")
    return f"{count(found)}: boxes differ by at most {difference:.7f} of the image, outlines have an IoU of at least {least:.3f}"


def read_rows(path: Path) -> list[list[float]]:
    """The numbers of a label file, line by line."""
    return [[float(number) for number in line.split()] for line in path.read_text().splitlines()]


def check_masks(found: list[Found], export: Path) -> str:
    """Pillow reads class and instance numbers; the object with the higher score is on top."""
    names = (export / "masks/classes.txt").read_text().splitlines()
    require(names == ["background", *CLASSES], f"classes.txt has {names}")
    for image in found:
        classes = Image.open(export / "masks/masks" / f"{image.name}.png")
        instances = Image.open(export / "masks/instances" / f"{image.name}.png")
        require(classes.mode == "P" and instances.mode.startswith("I"), f"{classes.mode} and {instances.mode}")
        expected = np.zeros((2, image.height, image.width), dtype=int)
        objects = list(zip(image.masks(), image.classes()))
        for number, (mask, label) in reversed(list(enumerate(objects, start=1))):
            expected[:, mask] = [[label + 1], [number]]
        require((np.asarray(classes) == expected[0]).all(), f"{image.name}: other classes")
        require((np.asarray(instances) == expected[1]).all(), f"{image.name}: other instances")
        colours = np.asarray(classes.convert("RGB"))
        require((colours[expected[0] == 0] == 0).all(), f"{image.name}: the background is not black")
    return f"{count(found)}: class and instance numbers are equal"


def check_torchvision(found: list[Found], export: Path) -> str:
    """torchvision.datasets.CocoDetection gives each image with its annotations."""
    from torchvision.datasets import CocoDetection

    folder = export / "coco"
    dataset = quietly(lambda: CocoDetection(root=folder / "images", annFile=folder / "annotations.json"))
    require(len(dataset) == len(found), f"{len(dataset)} images")
    difference = 0.0
    for (picture, target), image in zip(dataset, found):
        require(picture.size == (image.width, image.height), f"{image.name} has the size {picture.size}")
        classes = [annotation["category_id"] - 1 for annotation in target]
        require(classes == image.classes(), f"{image.name}: the classes are {classes}")
        boxes = corners([annotation["bbox"] for annotation in target])
        difference = max(difference, largest(boxes - image.boxes()))
        for annotation, mask in zip(target, image.masks()):
            require((dataset.coco.annToMask(annotation) == mask).all(), f"{image.name}: another mask")
    require(difference < COCO_PIXELS, f"a box differs by {difference} pixels")
    return f"CocoDetection, {count(found)}: masks are equal, boxes differ by at most {difference:.4f} pixels"


def check_ultralytics(found: list[Found], export: Path) -> str:
    """Ultralytics' own dataset classes accept every image and label file, for detection and for segmentation."""
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    difference, least = 0.0, 1.0
    for part, task in [("yolo", "detect"), ("yolo-segments", "segment")]:
        data = check_det_dataset(str(export / part / "data.yaml"), autodownload=False)
        require(list(data["names"].values()) == CLASSES, f"the names are {data['names']}")
        for split in ("train", "val"):
            dataset = YOLODataset(img_path=data[split], data=data, task=task, imgsz=640, augment=False, cache=False)
            labels = {Path(label["im_file"]).name: (i, label) for i, label in enumerate(dataset.labels)}
            require(len(labels) == len(found), f"{part}: {len(labels)} of {len(found)} images are accepted")
            for image in found:
                index, label = labels[image.file_name]
                require(tuple(label["shape"]) == (image.height, image.width), f"{image.name}: {label['shape']}")
                classes = [int(number) for number in label["cls"].ravel()]
                if task == "detect":
                    difference = max(difference, compare_yolo(image, classes, label["bboxes"]))
                    continue
                require(classes == image.classes(), f"{image.name}: the classes are {classes}")
                for points, mask in zip(label["segments"], image.masks(), strict=True):
                    least = min(least, polygon_iou(image, points, mask))
                # what a model gets: a tensor with the masks of all objects, resized
                sample = dataset[index]
                require(len(sample["cls"]) == len(classes), f"{image.name}: {len(sample['cls'])} objects in the sample")
                require(int(sample["masks"].max()) == len(classes), f"{image.name}: a mask is missing")
    # single precision
    require(difference < YOLO_SHARE, f"a box differs by {difference} of the image")
    require(least > LEAST_IOU, f"an outline has an IoU of only {least}")
    return (
        f"YOLODataset, {count(found)}: boxes differ by at most {difference:.7f} of the image, "
        f"outlines have an IoU of at least {least:.3f}"
    )


def quietly(read):
    """Runs a function whose messages on the standard output are not wanted."""
    stdout, sys.stdout = sys.stdout, open(os.devnull, "w")
    try:
        return read()
    finally:
        sys.stdout.close()
        sys.stdout = stdout


def check(groundling: Path, out: Path) -> int:
    """Runs all checks. Returns the number of failed ones."""
    # no settings and no downloads outside the folder
    os.environ |= {"YOLO_CONFIG_DIR": str(out), "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false", "YOLO_OFFLINE": "true"}
    os.environ["MPLCONFIGDIR"] = str(out)
    found = predict(groundling, make_pictures(out / "pictures"), out)
    tools = [
        ("pillow", "images", check_images),
        ("pycocotools", "coco", check_coco),
        ("numpy", "yolo and yolo-segments", check_yolo),
        ("pillow", "masks", check_masks),
        ("torchvision", "coco", check_torchvision),
        ("ultralytics", "yolo and yolo-segments", check_ultralytics),
    ]
    failed = 0
    for tool, formats, read in tools:
        if importlib.util.find_spec(tool if tool != "pillow" else "PIL") is None:
            print(f"skipped  {tool}: not installed")
            continue
        try:
            print(f"ok       {tool} {version(tool)}, {formats}: {read(found, out / 'export')}")
        except CheckFailed as problem:
            failed += 1
            print(f"FAILED   {tool} {version(tool)}, {formats}: {problem}")
    return failed


def main():
    """Parses the command line and runs the checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT / "target/release/groundling"
    parser.add_argument("--groundling", type=Path, default=default, help="the binary")
    parser.add_argument("--out", type=Path, help="an empty folder for the exports, which is then kept")
    arguments = parser.parse_args()
    out = (arguments.out or Path(tempfile.mkdtemp(prefix="groundling-exports-"))).resolve()
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    try:
        failed = check(arguments.groundling.resolve(), out)
    except CheckFailed as problem:
        sys.exit(f"FAILED   {problem}")
    finally:
        if arguments.out is None:
            shutil.rmtree(out)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
