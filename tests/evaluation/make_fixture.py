"""Writes fixture.json: random true and found objects, and what pycocotools computes for them.

The unit tests of src/evaluation read it. The seed is fixed, so the file changes only with this script or with pycocotools:

    pip install -r tests/evaluation/requirements.txt && python tests/evaluation/make_fixture.py

Coordinates and scores have at most two decimals, so that every reader of JSON gets the same numbers.
"""

import contextlib
import copy
import io
import json
import math
import random
import struct
from pathlib import Path

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

OUT = Path(__file__).parent / "fixture.json"
IOU_TYPES = ("bbox", "segm")
THRESHOLDS = (0.22, 0.51, 0.78)

# pycocotools counts a match with an annotation whose id is 0 as no match, so ids begin with 1
CUP, PLATE, FORK, GHOST, HEAP = 1, 2, 5, 7, 8
CATEGORIES = [
    {"id": PLATE, "name": "plate"},
    {"id": CUP, "name": "cup"},
    {"id": FORK, "name": "fork"},  # is never found
    {"id": GHOST, "name": "ghost"},  # has no true object
    {"id": HEAP, "name": "heap"},  # has only crowds
]
CROWDED_IMAGE, EMPTY_IMAGE, TIES_IMAGE = 4, 9, 11


def star(rng: random.Random, center: tuple[float, float], radius: float, corners: int = 8) -> list[float]:
    """A polygon around a centre."""
    numbers = []
    for i in range(corners):
        angle, length = 2 * math.pi * i / corners, radius * rng.uniform(0.6, 1.2)
        numbers += [center[0] + length * math.cos(angle), center[1] + length * math.sin(angle)]
    return [round(number, 2) for number in numbers]


def shifted(rng: random.Random, polygon: list[float], distance: float) -> list[float]:
    """The polygon moved, with a little noise at each corner."""
    by = [rng.uniform(-distance, distance) for _ in range(2)]
    return [round(number + by[i % 2] + rng.uniform(-0.7, 0.7), 2) for i, number in enumerate(polygon)]


def encode(polygons: list[list[float]], image: dict) -> dict:
    """The compressed run lengths of polygons."""
    size = image["height"], image["width"]
    merged = rle.merge(rle.frPyObjects(polygons, *size))
    return {"size": merged["size"], "counts": merged["counts"].decode()}


def uncompressed(encoded: dict) -> dict:
    """The same with counts as a list."""
    pixels = rle.decode({**encoded, "counts": encoded["counts"].encode()}).flatten(order="F")
    counts, value = [0], 0
    for pixel in pixels.tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": encoded["size"], "counts": counts}


def box(polygons: list[list[float]]) -> list[float]:
    """The box around polygons."""
    x, y = [n for p in polygons for n in p[0::2]], [n for p in polygons for n in p[1::2]]
    return [min(x), min(y), round(max(x) - min(x), 2), round(max(y) - min(y), 2)]


class Scene:
    """The true and found objects of all images."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.images = [
            {"id": i, "file_name": f"{i}.jpg", "width": rng.randint(50, 110), "height": rng.randint(40, 90)}
            for i in range(1, 13)
        ]
        # the order of the file is not that of the ids, but that of the ids decides between equal scores
        rng.shuffle(self.images)
        self.annotations: list[dict] = []
        self.found: list[dict] = []

    def add_true(self, image: dict, category: int, polygons: list[list[float]], crowd: bool = False) -> None:
        """Adds an annotation; its segmentation has one of the three forms."""
        encoded = encode(polygons, image)
        form = self.rng.choice([polygons, polygons, encoded, uncompressed(encoded)])
        self.annotations.append({
            "id": len(self.annotations) + 1,
            "image_id": image["id"],
            "category_id": category,
            "bbox": box(polygons),
            "area": float(rle.area({**encoded, "counts": encoded["counts"].encode()})),
            "iscrowd": int(crowd),
            "segmentation": uncompressed(encoded) if crowd else form,
        })

    def add_found(self, image: dict, category: int, polygons: list[list[float]], score: float) -> None:
        """Adds a result; its box does not fit its mask perfectly."""
        x, y, width, height = box(polygons)
        noise = [round(self.rng.uniform(-1.5, 1.5), 2) for _ in range(4)]
        self.found.append({
            "image_id": image["id"],
            "category_id": category,
            "bbox": [
                round(x + noise[0], 2),
                round(y + noise[1], 2),
                round(max(width + noise[2], 1), 2),
                round(max(height + noise[3], 1), 2),
            ],
            "score": score,
            "segmentation": encode(polygons, image),
        })

    def score(self) -> float:
        """One of 19 scores, so that many are equal."""
        return round(0.05 * self.rng.randint(1, 19), 2)

    def polygon(self, image: dict) -> list[float]:
        """A polygon that is sometimes partly outside the image."""
        center = self.rng.uniform(0, image["width"]), self.rng.uniform(0, image["height"])
        return star(self.rng, center, self.rng.uniform(5, 16))

    def fill(self, image: dict) -> None:
        """Adds the objects of an ordinary image."""
        rng = self.rng
        # before the other objects, because the reference must sort crowds to the end
        if rng.random() < 0.6:
            self.add_crowd(image, rng.choice([CUP, PLATE]))
        if rng.random() < 0.3:
            self.add_crowd(image, HEAP)
        for category in [CUP] * rng.randint(2, 4) + [PLATE] * rng.randint(1, 3) + [FORK] * rng.randint(0, 2):
            polygons = [self.polygon(image) for _ in range(rng.choice([1, 1, 1, 2]))]
            self.add_true(image, category, polygons)
            if category == FORK:
                continue
            for _ in range(rng.choice([0, 1, 1, 2, 3])):
                moved = [shifted(rng, polygon, rng.choice([0.5, 2, 4])) for polygon in polygons]
                self.add_found(image, rng.choice([category] * 6 + [CUP, PLATE]), moved, self.score())
        for category in (CUP, PLATE, GHOST, HEAP):
            if rng.random() < 0.5:
                self.add_found(image, category, [self.polygon(image)], self.score())

    def add_crowd(self, image: dict, category: int) -> None:
        """Adds a crowd, objects found inside it, and often a true object inside it that is found more than once."""
        center = self.rng.uniform(20, 40), self.rng.uniform(20, 40)
        self.add_true(image, category, [star(self.rng, center, 22)], crowd=True)
        for _ in range(self.rng.randint(1, 3)):
            self.add_found(image, category, [self.inside(center)], self.score())
        if category != HEAP and self.rng.random() < 0.7:
            polygon = self.inside(center)
            self.add_true(image, category, [polygon])
            for _ in range(2):
                self.add_found(image, category, [shifted(self.rng, polygon, 1)], self.score())

    def inside(self, center: tuple[float, float]) -> list[float]:
        """A small polygon in a crowd."""
        moved = center[0] + self.rng.uniform(-12, 12), center[1] + self.rng.uniform(-12, 12)
        return star(self.rng, moved, self.rng.uniform(5, 9))

    def fill_beyond_the_limit(self, image: dict) -> None:
        """More than 100 found objects of one label. The limit cuts some of those with the lowest score, 0.1; right and
        wrong ones are among them.
        """
        true = [self.polygon(image) for _ in range(12)]
        for polygon in true:
            self.add_true(image, CUP, [polygon])
        for _ in range(90):
            tiny = star(self.rng, (self.rng.uniform(0, 50), self.rng.uniform(0, 40)), 3, 4)
            self.add_found(image, CUP, [tiny], self.rng.choice([0.1, 0.15, 0.2, 0.55]))
        for polygon in true * 3:
            self.add_found(image, CUP, [shifted(self.rng, polygon, 1.5)], self.rng.choice([0.1, 0.1, 0.6]))

    def fill_with_ties(self, image: dict) -> None:
        """Boxes and masks whose IoU equals a threshold, and found objects that overlap equally with two true ones."""
        def rectangle(x: float, y: float, width: float, height: float) -> list[list[float]]:
            return [[x, y, x + width, y, x + width, y + height, x, y + height]]

        def add_exactly(category: int, rectangle: list[list[float]], score: float) -> None:
            self.add_found(image, category, rectangle, score)
            self.found[-1]["bbox"] = box(rectangle)

        image["width"], image["height"] = 110, 90
        for i, share in enumerate([10, 11, 12, 13, 14, 15, 16, 17, 18, 19]):
            # the IoU is 0.5, 0.55, ..., 0.95
            x, y = 20 * (i % 5), 30 * (i // 5)
            self.add_true(image, PLATE, rectangle(x, y, 10, 20))
            add_exactly(PLATE, rectangle(x, y, 10, share), self.score())
        for x in (0, 10):
            self.add_true(image, CUP, rectangle(x, 60, 20, 10))
        for x, score in [(5, 0.9), (0, 0.8), (10, 0.7)]:
            add_exactly(CUP, rectangle(x, 60, 20, 10), score)


def make_scene() -> Scene:
    """All images."""
    scene = Scene(random.Random(20))
    for image in scene.images:
        if image["id"] == CROWDED_IMAGE:
            scene.fill_beyond_the_limit(image)
        elif image["id"] == TIES_IMAGE:
            scene.fill_with_ties(image)
        elif image["id"] != EMPTY_IMAGE:
            scene.fill(image)
    # the results of an image need not be together
    scene.rng.shuffle(scene.found)
    return scene


def evaluated(truth: dict, found: list[dict], iou_type: str, category: int | None = None, **params) -> COCOeval:
    """The evaluation of pycocotools; it changes its arguments."""
    coco = COCO()
    coco.dataset = copy.deepcopy(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(found)), iou_type)
        for name, value in params.items():
            setattr(evaluation.params, name, value)
        if category is not None:
            evaluation.params.catIds = [category]
        evaluation.evaluate()
    return evaluation


def average_precision(truth: dict, found: list[dict], iou_type: str, category: int | None = None) -> list[float] | None:
    """AP and AP50; None if there are no true objects."""
    evaluation = evaluated(truth, found, iou_type, category)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    ap, ap50 = evaluation.stats[:2].tolist()
    return None if ap == -1 else [ap, ap50]


def counts(truth: dict, found: list[dict], iou_type: str, category: dict, threshold: float) -> dict:
    """The numbers of true, found and correct objects at a score threshold, without a limit of objects per image."""
    above = [result for result in found if result["score"] > threshold]
    evaluation = evaluated(truth, above, iou_type, category["id"], maxDets=[100_000], areaRng=[[0, 1e10]])
    images = [image for image in evaluation.evalImgs if image is not None]
    is_counted = [np.logical_not(image["dtIgnore"][0]) for image in images]
    return {
        "iou_type": iou_type,
        "label": category["name"],
        "threshold": threshold,
        "true_objects": sum(int(np.sum(np.equal(image["gtIgnore"], 0))) for image in images),
        "found": sum(int(counted.sum()) for counted in is_counted),
        "correct": sum(int(((image["dtMatches"][0] > 0) & counted).sum()) for image, counted in zip(images, is_counted)),
    }


def polygon_cases(rng: random.Random) -> list[dict]:
    """Polygons of all kinds with the mask of their union."""
    cases = []
    for i in range(180):
        image = {"width": rng.randint(1, 40), "height": rng.randint(1, 30)}
        width, height = image["width"], image["height"]

        def point(margin: float) -> list[float]:
            return [rng.uniform(-margin * width, (1 + margin) * width), rng.uniform(-margin * height, (1 + margin) * height)]

        kind = i % 9
        if kind == 0:
            polygons = [star(rng, tuple(point(0)), rng.uniform(1, 12))]
        elif kind == 1:
            polygons = [star(rng, tuple(point(0.3)), rng.uniform(1, 20), 3), star(rng, tuple(point(0)), 6)]
        elif kind == 2:  # intersects itself
            polygons = [[n for _ in range(rng.randint(3, 7)) for n in point(0.2)]]
        elif kind == 3:  # whole pixels
            polygons = [[round(n) for _ in range(rng.randint(3, 5)) for n in point(0.1)]]
        elif kind == 4:  # exactly between the points of the grid of fifths of a pixel
            polygons = [[round(n * 10) / 10 for _ in range(rng.randint(3, 5)) for n in point(0.1)]]
        elif kind == 5:  # smaller than a pixel
            polygons = [star(rng, tuple(point(0)), rng.uniform(0.1, 0.9), 5)]
        elif kind == 6:  # far outside
            polygons = [[n for _ in range(3) for n in point(3)]]
        elif kind == 7:  # a line, and a corner that is given twice
            a, b = point(0.1), point(0.1)
            polygons = [a + b + a, a + a + b + b + point(0)]
        else:
            polygons = [star(rng, tuple(point(0)), rng.uniform(1, 9)) for _ in range(3)]
        polygons = [[round(float(number), 2) for number in polygon] for polygon in polygons]
        cases.append({"polygons": polygons, **encode(polygons, image)})
    return cases


def bits(numbers: np.ndarray) -> list[int]:
    """The bits of each number."""
    return [struct.unpack("<Q", struct.pack("<d", number))[0] for number in numbers.tolist()]


def lines(value, depth: int) -> str:
    """JSON with one line for each element of a list, and for each field down to this depth."""
    if depth > 0 and value and isinstance(value, dict):
        return "{\n" + ",\n".join(f"{json.dumps(key)}:{lines(v, depth - 1)}" for key, v in value.items()) + "\n}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(lines(v, 0) for v in value) + "\n]"
    return json.dumps(value, separators=(",", ":"))


def main() -> None:
    scene = make_scene()
    truth = {"info": {}, "images": scene.images, "categories": CATEGORIES, "annotations": scene.annotations}
    found = scene.found
    expected: dict = {}
    for iou_type in IOU_TYPES:
        labels = {c["name"]: average_precision(truth, found, iou_type, c["id"]) for c in CATEGORIES}
        expected[iou_type] = {"overall": average_precision(truth, found, iou_type), "labels": labels}
    expected["counts"] = [
        counts(truth, found, iou_type, category, threshold)
        for iou_type in IOU_TYPES
        for category in CATEGORIES
        for threshold in THRESHOLDS
    ]
    coco = COCO()
    coco.dataset = copy.deepcopy(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    masks = [coco.annToRLE(annotation) for annotation in coco.dataset["annotations"]]
    expected["true_masks"] = [{"size": mask["size"], "counts": text(mask["counts"])} for mask in masks]
    params = COCOeval(iouType="bbox").params
    expected["iou_threshold_bits"], expected["recall_point_bits"] = bits(params.iouThrs), bits(params.recThrs)

    fixture = {"truth": truth, "found": found, "expected": expected, "polygons": polygon_cases(random.Random(21))}
    OUT.write_text(lines(fixture, 3) + "\n")
    crowds = sum(annotation["iscrowd"] for annotation in scene.annotations)
    print(f"{len(scene.annotations)} true objects, {crowds} of them crowds, and {len(found)} found objects")
    for iou_type in IOU_TYPES:
        print(iou_type, expected[iou_type])
    print(f"{OUT}: {OUT.stat().st_size / 1024:.0f} KB")


def text(counts: bytes | str) -> str:
    """The counts as text."""
    return counts.decode() if isinstance(counts, bytes) else counts


if __name__ == "__main__":
    main()
