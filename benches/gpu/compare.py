"""Compares two results of `groundling predict`: every detection with the nearest one of the other result.

    python compare.py NAME EXPECTED.json ACTUAL.json
"""

import json
import sys
from pathlib import Path

import numpy

# two boxes belong to the same object if no coordinate differs by more than this share of the longer side
NEAR = 0.05


def unpacked(mask: dict) -> numpy.ndarray:
    """Decodes COCO's compressed RLE to booleans `[width * height]`, column by column."""
    runs, text, at = [], mask["counts"].encode(), 0
    while at < len(text):
        value, shift, more = 0, 0, True
        while more:
            byte = text[at] - 48
            value |= (byte & 0x1F) << shift
            more = bool(byte & 0x20)
            at, shift = at + 1, shift + 5
            if not more and byte & 0x10:
                value |= -1 << shift
        if len(runs) > 2:
            value += runs[-2]
        runs.append(value)
    return numpy.repeat(numpy.arange(len(runs)) % 2, runs).astype(bool)


def iou(one: dict, other: dict) -> float:
    """The IoU of two masks; 1 if both are empty."""
    if not (one and other):
        return float("nan")
    one, other = unpacked(one), unpacked(other)
    either = (one | other).sum()
    return float((one & other).sum() / either) if either else 1.0


def compare(expected: list[dict], actual: list[dict]) -> dict:
    """The largest differences of all images."""
    boxes, scores, ious, mask_scores = [0.0], [0.0], [1.0], [0.0]
    count = found = matched = other_phrases = 0
    for theirs, ours in zip(expected, actual, strict=True):
        limit = NEAR * max(theirs["width"], theirs["height"])
        theirs, ours = theirs["detections"], ours["detections"]
        count, found = count + len(theirs), found + len(ours)
        if not (theirs and ours):
            continue
        one, other = (numpy.array([detection["box"] for detection in detections]) for detections in (theirs, ours))
        distances = abs(one[:, None] - other[None]).max(2)
        # among boxes at the same position, prefer the same phrase and the nearest score
        phrases = numpy.array([[a["phrase"] != b["phrase"] for b in ours] for a in theirs])
        levels = abs(numpy.subtract.outer([d["score"] for d in theirs], [d["score"] for d in ours]))
        costs = distances + limit / 2 * phrases + limit / 2 * levels
        for row, detection in enumerate(theirs):
            column = int(costs[row].argmin())
            if distances[row, column] > limit or not numpy.isfinite(costs[row, column]):
                continue
            costs[:, column] = numpy.inf
            matched += 1
            nearest = ours[column]
            boxes.append(distances[row, column])
            scores.append(abs(detection["score"] - nearest["score"]))
            other_phrases += nearest["phrase"] != detection["phrase"]
            if detection.get("mask") and nearest.get("mask"):
                ious.append(iou(detection["mask"], nearest["mask"]))
                mask_scores.append(abs(detection["mask_score"] - nearest["mask_score"]))
    return {
        "expected": count,
        "found": found,
        "matched": matched,
        "other phrases": other_phrases,
        "box, pixels": max(boxes),
        "box, median": float(numpy.median(boxes)),
        "box, 99 %": float(numpy.percentile(boxes, 99)),
        "score": max(scores),
        "mask IoU": min(ious),
        "mask IoU, median": float(numpy.median(ious)),
        "mask score": max(mask_scores),
    }


def read(file: str) -> list[dict]:
    """Reads the results; an image that failed is an error."""
    results = json.loads(Path(file).read_text())["results"]
    for result in results:
        if "detections" not in result:
            raise SystemExit(f"{file}: {result}")
    return results


if __name__ == "__main__":
    name, expected, actual = sys.argv[1:]
    compared = compare(read(expected), read(actual))
    print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in compared.items()))
