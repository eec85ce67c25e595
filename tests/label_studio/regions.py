"""Checks of regions."""

import base64
import functools
import inspect
import io
from typing import Dict, Iterable, List, Sequence, Tuple

import numpy as np
from api import CONFIG, LABELS
from label_studio_sdk.converter.brush import decode_rle, mask2rle
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image
from studio import ensure

Box = Tuple[float, float, float, float]
KINDS = ("rectanglelabels", "brushlabels")


def summary(regions: Iterable[dict]) -> List[Tuple[str, ...]]:
    """Type and labels of each region, sorted."""
    return sorted((region["type"], *region["value"].get(region["type"], ())) for region in regions)


def pairs(labels: Sequence[str] = LABELS) -> List[Tuple[str, ...]]:
    """The summary of a rectangle and a mask for each label."""
    return sorted((kind, label) for kind in KINDS for label in labels)


def drawn(regions: Iterable[dict]) -> List[dict]:
    """The regions that are shapes, without the text of the prompt."""
    return [region for region in regions if region["type"] != "textarea"]


def mask_of(region: dict) -> np.ndarray:
    """The mask of a brush region as [height, width], decoded by Label Studio's own decoder."""
    width, height = region["original_width"], region["original_height"]
    values = decode_rle(region["value"]["rle"])
    ensure(len(values) == width * height * 4, f"a mask of {len(values)} values, not {width}x{height}x4")
    mask = np.asarray(values).reshape(height, width, 4)
    ensure(set(np.unique(mask)) <= {0, 255}, f"mask values {np.unique(mask)}")
    ensure((mask == mask[:, :, :1]).all(), "the four channels of a mask differ")
    return mask[:, :, 3] == 255


def bitmask_of(region: dict) -> np.ndarray:
    """The mask of a bitmask region as [height, width]: the opaque pixels of its PNG, which must be black."""
    head, data = region["value"]["imageDataURL"].split(",", 1)
    ensure(head == "data:image/png;base64", f"a bitmask that is {head}")
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))
    size = (region["original_height"], region["original_width"])
    ensure(image.shape[:2] == size, f"a bitmask of {image.shape[:2]}, not {size}")
    ensure(set(np.unique(image[:, :, 3])) <= {0, 255}, f"opacities {np.unique(image[:, :, 3])}")
    ensure(not image[:, :, :3].any(), "the pixels of a bitmask are not black")
    return image[:, :, 3] == 255


def vertices_box(region: dict) -> Box:
    """The box around a vector's vertices, in pixels. Each vertex must name the one before it."""
    vertices = region["value"]["vertices"]
    names = [None, *(vertex["id"] for vertex in vertices)]
    ensure([vertex["prevPointId"] for vertex in vertices] == names[:-1], f"vertices {vertices[:3]}")
    ensure(len(set(names)) == len(names), f"vertices with the same id: {names}")
    x = [vertex["x"] * region["original_width"] / 100 for vertex in vertices]
    y = [vertex["y"] * region["original_height"] / 100 for vertex in vertices]
    return min(x), min(y), max(x), max(y)


def mask_box(mask: np.ndarray) -> Box:
    """The box around a mask, in pixels."""
    ensure(mask.any(), "the mask is empty")
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def rectangle_box(region: dict) -> Box:
    """A rectangle region's box, in pixels."""
    value, width, height = region["value"], region["original_width"] / 100, region["original_height"] / 100
    x, y = value["x"] * width, value["y"] * height
    return x, y, x + value["width"] * width, y + value["height"] * height


def iou(one: Box, other: Box) -> float:
    """The intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return common / (areas - common)


def by_label(regions: Iterable[dict], kind: str) -> Dict[str, dict]:
    """The regions of a type by their label."""
    return {region["value"][kind][0]: region for region in regions if region["type"] == kind}


def check_regions(what: str, regions: list, labels: Sequence[str] = LABELS, size: Tuple[int, int] = (640, 480)) -> None:
    """Checks that there are a rectangle and a mask for each label, which overlap, with the picture's size, scores and unique ids."""
    ensure(summary(regions) == pairs(labels), f"{what}: the regions are {summary(regions)}, not {pairs(labels)}")
    ids = [region["id"] for region in regions]
    ensure(len(set(ids)) == len(ids), f"{what}: ids twice: {ids}")
    for region in regions:
        found = (region["original_width"], region["original_height"])
        ensure(found == size, f"{what}: a region of a picture of {found}, not {size}")
        ensure(0 < (region.get("score") or 0) <= 1, f"{what}: score {region.get('score')} of a {region['type']}")
    rectangles, brushes = by_label(regions, "rectanglelabels"), by_label(regions, "brushlabels")
    for label in labels:
        overlap = iou(rectangle_box(rectangles[label]), mask_box(mask_of(brushes[label])))
        ensure(overlap > 0.7, f"{what}: the IoU of mask and rectangle of {label} is only {overlap:.2f}")


@functools.lru_cache
def sdk_knows_masks() -> bool:
    """Whether the SDK accepts masks that it encoded itself: older releases take their bytes for something else."""
    config = CONFIG.replace(LABELS[0], "any")
    region = {"id": "m", "from_name": "label2", "to_name": "image", "type": "brushlabels"}
    masks = (np.eye(size, dtype=np.uint8) * 255 for size in range(8, 24))
    values = ({"format": "rle", "rle": mask2rle(mask), "brushlabels": ["any"]} for mask in masks)
    return all(LabelInterface(config).validate_region(region | {"value": value}) for value in values)


def check_prediction(what: str, prediction: dict, config: str) -> None:
    """Checks that a prediction is valid for Label Studio's SDK."""
    if not sdk_knows_masks():
        prediction = prediction | {"result": [r for r in prediction["result"] if r["type"] != "brushlabels"]}
    validate = LabelInterface(config).validate_prediction
    if "return_errors" in inspect.signature(validate).parameters:
        problems = validate(prediction, return_errors=True)
    else:
        problems = [] if validate(prediction) else ["it is invalid; this release of the SDK does not say why"]
    ensure(problems == [], f"{what}: {problems}")
