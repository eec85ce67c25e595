"""`groundling evaluate` on scenes of shapes, compared with pycocotools, and the thresholds that it suggests on other scenes.

    pip install -r tests/evaluation/requirements.txt
    python tests/evaluation/check.py [--scenes 24] [--groundling BINARY] [--out FOLDER]

The scenes are drawn by the code that drew the training scenes of the demo models, with seeds that no training uses and with smaller
shapes, so that the models make mistakes. Prints a line for each step; the exit code is 1 after the first failed one. The reports are
written to the folder.
"""

import argparse
import contextlib
import io
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "models/demo/training"))

import scenes  # noqa: E402

LABELS = ["red circle", "blue star", "green triangle", "yellow square", "purple ring", "orange heart"]
# the seeds of the scenes that choose the thresholds, and of those that test them
TUNING, HELD_OUT = 7_000_001, 7_000_002
TOLERANCE = 1e-6


def ensure(condition, text: str) -> None:
    if not condition:
        raise SystemExit(f"FAILED: {text}")


def draw(folder: Path, seed: int, count: int) -> None:
    """Draws scenes and writes their COCO file: `annotations.json` beside the images."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    np.random.seed(seed % 2**32)
    pairs = [tuple(label.split()) for label in LABELS]
    others = [(colour, shape) for colour in scenes.COLOUR_NAMES for shape in scenes.SHAPE_NAMES if (colour, shape) not in pairs]
    images, annotations = [], []
    for number in range(count):
        wanted = rng.choices(pairs, k=5) + rng.sample(others, 4)
        rng.shuffle(wanted)
        picture, shapes = scenes.scene(rng, 320, 240, max_size=0.1, wanted=wanted)
        name = f"{number:03}.png"
        picture.save(folder / "images" / name, compress_level=1)
        images.append({"id": number + 1, "file_name": name, "width": 320, "height": 240})
        for shape in shapes:
            label = f"{shape.colour} {shape.shape}"
            if label not in LABELS:
                continue
            x0, y0, x1, y1 = (float(side) for side in shape.box)
            rle = coco_mask.encode(np.asfortranarray(shape.mask.astype(np.uint8)))
            rle["counts"] = rle["counts"].decode()
            annotations.append({
                "id": len(annotations) + 1, "image_id": number + 1, "category_id": LABELS.index(label) + 1, "iscrowd": 0,
                "bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(shape.mask.sum()), "segmentation": rle,
            })  # fmt: skip
    categories = [{"id": i + 1, "name": label} for i, label in enumerate(LABELS)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))


def evaluate(binary: Path, folder: Path, *options: str) -> dict:
    """Runs `groundling evaluate` on a folder of scenes. Returns its JSON."""
    command = [binary, "evaluate", "--coco", folder / "annotations.json", "--images", folder / "images", "--json"]
    command += ["--detector", "demo", "--segmenter", "demo", "--predictions", folder / "predictions.json"]
    done = subprocess.run([*command, "--report", folder / "report.html", *options], capture_output=True, text=True)
    ensure(done.returncode == 0, f"groundling evaluate: {done.stderr}")
    return json.loads(done.stdout)


def pycocotools(folder: Path, kind: str) -> tuple[float, float]:
    """AP and AP50 of pycocotools for the predictions."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "annotations.json"))
        found = truth.loadRes(str(folder / "predictions.json"))
        evaluation = COCOeval(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def iou(a: list, b: list) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / max(a[2] * a[3] + b[2] * b[3] - common, 1e-9)


def f1(folder: Path, thresholds: dict[str, float]) -> float:
    """F1 of all labels together, counted anew from the files."""
    truth = json.loads((folder / "annotations.json").read_text())["annotations"]
    found = json.loads((folder / "predictions.json").read_text())
    found = [object for object in found if object["score"] > thresholds[LABELS[object["category_id"] - 1]]]
    open_objects, correct = {}, 0
    for object in truth:
        open_objects.setdefault((object["image_id"], object["category_id"]), []).append(object["bbox"])
    for object in sorted(found, key=lambda object: -object["score"]):
        left = open_objects.get((object["image_id"], object["category_id"]), [])
        best = max(left, key=lambda box: iou(box, object["bbox"]), default=None)
        if best is not None and iou(best, object["bbox"]) >= 0.5:
            left.remove(best)
            correct += 1
    return 2 * correct / (len(truth) + len(found))


def check_average_precision(name: str, folder: Path, result: dict) -> None:
    """Compares the average precisions with those of pycocotools for the same predictions."""
    for kind, key in (("bbox", "box"), ("segm", "mask")):
        expected, own = pycocotools(folder, kind), result[key]
        difference = max(abs(expected[0] - own["ap"]), abs(expected[1] - own["ap50"]))
        print(f"{name}, {key}: AP {own['ap']:.4f}, AP50 {own['ap50']:.4f}; difference to pycocotools {difference:.1e}")
        ensure(difference <= TOLERANCE, f"pycocotools has {expected}")


def check_papers_protocol(binary: Path, folder: Path, count: int) -> None:
    """Every box is rated for every category, and the best 300 of an image count."""
    result = evaluate(binary, folder, "--protocol", "papers", "--limit", str(count))
    found = json.loads((folder / "predictions.json").read_text())
    truth = json.loads((folder / "annotations.json").read_text())
    truth["images"] = truth["images"][:count]
    ids = {image["id"] for image in truth["images"]}
    truth["annotations"] = [object for object in truth["annotations"] if object["image_id"] in ids]
    part = folder / "papers"
    part.mkdir(exist_ok=True)
    (part / "annotations.json").write_text(json.dumps(truth))
    (part / "predictions.json").write_text(json.dumps(found))
    # the demo detector has 30 queries, so there are 180 pairs
    per_image = {number: sum(object["image_id"] == number for object in found) for number in ids}
    ensure(set(per_image.values()) == {30 * len(LABELS)}, f"rated boxes of each image: {per_image}")
    check_average_precision("papers' protocol", part, result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenes", type=int, default=48)
    parser.add_argument("--groundling", type=Path, default=ROOT / "target" / "release" / "groundling")
    parser.add_argument("--out", type=Path, default=ROOT / "target" / "evaluation")
    args = parser.parse_args()
    results = {}
    for name, seed in (("tuning", TUNING), ("held-out", HELD_OUT)):
        draw(args.out / name, seed, args.scenes)
        results[name] = evaluate(args.groundling, args.out / name)
        check_average_precision(name, args.out / name, results[name])
    own = {label["label"]: label for label in results["tuning"]["labels"]}
    settings = {label: own[label]["threshold"] for label in LABELS}
    best = {label: own[label]["best_threshold"] or own[label]["threshold"] for label in LABELS}
    common = results["tuning"]["best_threshold"]["threshold"]
    for name in ("tuning", "held-out"):
        before, after = f1(args.out / name, settings), f1(args.out / name, best)
        both = f1(args.out / name, dict.fromkeys(LABELS, common))
        print(f"{name}: F1 {before:.4f} at the thresholds of the settings, {after:.4f} at the best of each label, "
              f"{both:.4f} at the best common one ({common})")  # fmt: skip
        overall = results[name]["overall"]["f1"]
        ensure(abs(before - overall) < TOLERANCE, f"groundling counts F1 {overall}")
        ensure(after > before, "the suggested thresholds do not raise F1")
    check_papers_protocol(args.groundling, args.out / "tuning", 8)
    print("suggested: " + ", ".join(f"{label} {threshold}" for label, threshold in best.items()))


if __name__ == "__main__":
    main()
