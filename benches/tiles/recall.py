"""Measures what tiles find: recall and precision on held-out scenes with many small shapes, with and without tiles.

    pip install numpy pillow
    cargo build --release
    python benches/tiles/recall.py [--scenes 10] [--groundling target/release/groundling]

The scenes are drawn by the code that drew the training scenes of the demo models (models/demo/training/scenes.py), with seeds that
no training uses, and with shapes far smaller than in the training. A box is right if its phrase is right and its IoU with a shape
that was not found yet is at least 0.5. The last line measures regions of interest in the same pictures: rectangles of 15 % of
their sides, searched by a server as if an annotator had drawn them.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Iterable, List, Tuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "models/demo/training"))

import scenes  # noqa: E402

Box = Tuple[float, float, float, float]
# name, width, height, smallest and largest shape as a share of the short side, settings of tiles
SETS = [
    ("2 megapixels, shapes of 6 to 12 % of the short side", 1632, 1224, 0.06, 0.12, ["off", "2x2", "3x3", "auto"]),
    ("8 megapixels, shapes of 3 to 6 % of the short side", 3264, 2448, 0.03, 0.06, ["off", "4x4", "6x6", "auto"]),
]
KINDS, COPIES = 4, 6
AREA, AREAS = 0.15, 6
CONFIG = """<View><Image name="image" value="$image"/><TextArea name="prompt" toName="image"/>
  <RectangleLabels name="roi" toName="image"/><Rectangle name="box" toName="image"/></View>"""


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return common / max(areas - common, 1e-9)


def matches(found: Iterable[dict], truth: List[Tuple[str, Box]]) -> int:
    """The number of detections, best first, that find a shape of their phrase which no better one has found."""
    open_shapes, right = list(truth), 0
    for detection in found:
        for shape in open_shapes:
            if shape[0] == detection["phrase"] and iou(shape[1], detection["box"]) >= 0.5:
                open_shapes.remove(shape)
                right += 1
                break
    return right


def draw(rng: random.Random, folder: Path, name: str, width: int, height: int) -> Tuple[Path, List[Tuple[str, Box]]]:
    """Draws a scene. Returns its file, and the phrase and the box of every visible shape."""
    pairs = [(colour, shape) for colour in scenes.COLOUR_NAMES for shape in scenes.SHAPE_NAMES]
    wanted = rng.sample(pairs, KINDS) * COPIES
    rng.shuffle(wanted)
    picture, shapes = scenes.scene(rng, width, height, max_size=scenes.MAX_SIZE, wanted=wanted)
    path = folder / f"{name}.png"
    picture.save(path, compress_level=1)
    return path, [(f"{item.colour} {item.shape}", item.box) for item in shapes]


def predict(groundling: Path, picture: Path, phrases: Iterable[str], *arguments: str) -> Tuple[List[dict], float]:
    """The detections of a picture, best first, and the seconds of the detector."""
    command = [groundling, "predict", picture, "--prompt", ". ".join(sorted(phrases)), "--detector", "demo"]
    answer = subprocess.run([*command, "--segmenter", "none", *arguments], check=True, capture_output=True)
    [result] = json.loads(answer.stdout)["results"]
    return result["detections"], result["timings"]["detector_ms"] / 1000


class Server:
    """A groundling server with the detector only, which reads pictures from a folder."""

    def __init__(self, groundling: Path, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        settings = {"PORT": str(port), "DETECTOR": "demo", "SEGMENTER": "none", "MODEL_DIR": str(folder / "models")}
        settings |= {"LOCAL_FILES_DOCUMENT_ROOT": str(folder), "LOG_LEVEL": "warn"}
        self.process = subprocess.Popen([groundling, "serve"], env=os.environ | settings)
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/ready", timeout=2):
                    break
            except OSError:
                time.sleep(0.2)

    def search(self, picture: Path, phrases: Iterable[str], area: Box, size: Tuple[int, int]) -> List[dict]:
        """The detections in a region of interest, best first; boxes in pixels of the picture."""
        scale = [100 / size[0], 100 / size[1]] * 2
        x0, y0, x1, y1 = (value * factor for value, factor in zip(area, scale))
        value = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "rotation": 0, "rectanglelabels": []}
        drawn = {"id": "r", "type": "rectanglelabels", "from_name": "roi", "to_name": "image", "value": value}
        typed = {"type": "textarea", "from_name": "prompt", "to_name": "image", "value": {"text": [". ".join(phrases)]}}
        data = {"image": f"/data/local-files/?d={picture.name}"}
        task = {"id": 1, "data": data, "drafts": [{"result": [drawn], "updated_at": ""}]}
        body = {"tasks": [task], "label_config": CONFIG, "params": {"context": {"result": [typed]}}}
        request = urllib.request.Request(
            f"{self.url}/predict", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            regions = json.load(answer)["results"][0]["result"]
        found = []
        for region in regions:
            box = region["value"]
            corners = (box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"])
            found.append({"box": [value / factor for value, factor in zip(corners, scale)], "score": region["score"]})
        return found

    def stop(self) -> None:
        """Ends the server."""
        self.process.terminate()
        self.process.wait()


def measure_areas(groundling: Path, folder: Path, drawn: list, size: Tuple[int, int]) -> None:
    """Prints the recall of the shapes of one phrase inside random regions of interest."""
    server = Server(groundling, folder)
    total = right = found = 0
    try:
        for i, (picture, truth) in enumerate(drawn):
            rng = random.Random(f"areas {i}")
            for phrase, target in rng.sample(truth, min(AREAS, len(truth))):
                width, height = AREA * size[0], AREA * size[1]
                x = min(max(target[0] - rng.uniform(0.2, 0.6) * width, 0), size[0] - width)
                y = min(max(target[1] - rng.uniform(0.2, 0.6) * height, 0), size[1] - height)
                area = (x, y, x + width, y + height)
                inside = [
                    (phrase, box)
                    for name, box in truth
                    if name == phrase and box[0] >= x and box[1] >= y and box[2] <= area[2] and box[3] <= area[3]
                ]
                detections = [d | {"phrase": phrase} for d in server.search(picture, [phrase], area, size)]
                total, right, found = total + len(inside), right + matches(detections, inside), found + len(detections)
    finally:
        server.stop()
    print(f"  regions of interest of {AREA:.0%} of the sides: recall {right / total:.3f} of {total} shapes inside", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=10)
    parser.add_argument("--groundling", type=Path, default=ROOT / "target/release/groundling")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, width, height, smallest, largest, settings in SETS:
            scenes.MIN_SIZE, scenes.MAX_SIZE = smallest, largest
            drawn = [
                draw(random.Random(f"held out {name} {i}"), Path(folder), str(i), width, height)
                for i in range(arguments.scenes)
            ]
            total = sum(len(truth) for _, truth in drawn)
            print(f"{name}: {len(drawn)} scenes with {total} shapes", flush=True)
            for tiles in settings:
                right = found = 0
                seconds = 0.0
                for picture, truth in drawn:
                    detections, time = predict(
                        arguments.groundling, picture, {phrase for phrase, _ in truth}, "--tiles", tiles
                    )
                    right, found, seconds = right + matches(detections, truth), found + len(detections), seconds + time
                print(
                    f"  tiles {tiles:5} recall {right / total:.3f}  precision {right / max(found, 1):.3f}  "
                    f"detector {seconds / len(drawn):.2f} s per picture",
                    flush=True,
                )
        measure_areas(arguments.groundling, Path(folder), drawn, (width, height))


if __name__ == "__main__":
    main()
