"""The inputs of ONNX Runtime and torch: the same arrays for both."""

import numpy

from sizes import DETECTOR_SIZE, IMAGE_SIZE, OTHER_SIDES, SEGMENTER_SIDE, TOKENS
from works import HQ_MASKS, MASKS, is_detector


def inputs_of(work: str) -> dict[str, numpy.ndarray]:
    """The arguments of a model, in the order of its ONNX file's inputs."""
    if is_detector(work):
        return detector_inputs()
    if work in MASKS:
        features = {"hq_features": noise(1, 32, 256, 256)} if work == HQ_MASKS else {}
        return {"image_embeddings": noise(1, 256, 64, 64)} | features | {"input_boxes": boxes(MASKS[work])}
    side = OTHER_SIDES.get(work, SEGMENTER_SIDE)
    return {"pixel_values": noise(1, 3, side, side)}


def detector_inputs() -> dict[str, numpy.ndarray]:
    """The detector's inputs: an image and a text."""
    ids = numpy.array([TOKENS], dtype=numpy.int64)
    return {
        "pixel_values": noise(1, 3, *DETECTOR_SIZE),
        "pixel_mask": numpy.ones((1, *DETECTOR_SIZE), dtype=numpy.int64),
        "input_ids": ids,
        "token_type_ids": numpy.zeros_like(ids),
        "attention_mask": numpy.ones_like(ids),
    }


def noise(*shape: int) -> numpy.ndarray:
    """Normal noise, in the range of normalised pixels and embeddings."""
    return numpy.random.default_rng(0).standard_normal(shape, dtype=numpy.float32)


def boxes(count: int) -> numpy.ndarray:
    """`[1, count, 4]`: boxes spread over the image, as corners in pixels of the segmenter's input."""
    height, width = resized(IMAGE_SIZE)
    columns = 5
    corners = []
    for box in range(count):
        row, column = divmod(box, columns)
        x, y = width * (0.1 + 0.15 * column), height * (0.1 + 0.15 * row)
        corners.append([x, y, x + 0.25 * width, y + 0.25 * height])
    return numpy.array([corners], dtype=numpy.float32)


def resized(size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) of an image in the segmenter's square input."""
    scale = SEGMENTER_SIDE / max(size)
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)
