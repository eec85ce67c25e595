"""Generates scenes and prompts, and the detections and masks of the reference with the demo models.

Run it again whenever the demo weights change: it draws the scenes, and writes demo/scene_XX.png and
demo/expected.json. It skips scenes in which rounding could change the result (a score close to a threshold or to another
score, two phrases with close scores), and scenes whose file would be large.
"""

import argparse
import importlib.util
import io
import json
import random
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco
from transformers import (
    BertTokenizerFast,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    SamImageProcessor,
    SamModel,
    SamProcessor,
)

from fixtures import HERE, run_exactly

OUT = HERE / "demo"
MODELS = HERE.parent.parent / "models" / "demo"
BOX_THRESHOLD = 0.3
TEXT_THRESHOLD = 0.25
DOT = 1012
COLOURS = 16
MARGIN = 2e-3  # minimum distance of scores from thresholds and from each other

COLOUR_WORDS = "red green blue yellow orange purple pink brown black white cyan gray".split()
SHAPE_WORDS = "circle square triangle star heart cross ring diamond hexagon moon arrow rectangle".split()

# (width, height)
SIZES = [(160, 160)] * 8 + [(161, 159), (97, 131), (131, 97), (128, 128), (200, 200), (224, 224), (256, 256)]
SIZES += [(240, 120), (280, 140), (320, 180), (320, 200), (301, 97), (120, 240), (100, 220), (180, 320), (213, 320)]


class Detector:
    """Grounding DINO: from an image and phrases to boxes with scores and phrases."""

    def __init__(self, folder: Path) -> None:
        self.model = GroundingDinoForObjectDetection.from_pretrained(folder, torch_dtype=torch.float32).eval()
        self.processor = GroundingDinoProcessor(
            GroundingDinoImageProcessor.from_pretrained(folder),
            BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")),
        )

    def detect(self, image: Image.Image, phrases: list[str]) -> tuple[list[dict], bool]:
        """The detections by descending score, and whether they are clear: rounding cannot change them."""
        inputs = self.processor(images=image, text=prompt_text(phrases), return_tensors="pt")
        output = self.model(**inputs)
        ids = inputs["input_ids"]
        result = self.processor.post_process_grounded_object_detection(
            output, ids, BOX_THRESHOLD, TEXT_THRESHOLD, target_sizes=[(image.height, image.width)]
        )[0]
        probabilities = output.logits[0].sigmoid()
        scores = probabilities.max(-1)[0]
        kept = torch.nonzero(scores > BOX_THRESHOLD)[:, 0]
        spans = phrase_spans(ids[0].tolist())
        assert len(spans) == len(phrases), (phrases, spans)
        clear = (scores - BOX_THRESHOLD).abs().min().item() > MARGIN
        detections = []
        for query, score, box, label in zip(kept, result["scores"], result["boxes"], result["labels"]):
            assert scores[query] == score
            index, phrase_is_clear = best_phrase(probabilities[query], spans)
            tokens = probabilities[query, : ids.shape[1]]
            clear &= phrase_is_clear and (tokens - TEXT_THRESHOLD).abs().min().item() > MARGIN
            detections.append({"box": box, "score": score.item(), "label": label, "phrase": phrases[index]})
        detections.sort(key=lambda detection: -detection["score"])
        ordered = [detection["score"] for detection in detections]
        clear &= all(first - second > MARGIN for first, second in zip(ordered, ordered[1:]))
        return detections, clear


class Segmenter:
    """SAM: from an image and boxes to masks of the image's size."""

    def __init__(self, folder: Path) -> None:
        self.model = SamModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
        self.processor = SamProcessor(SamImageProcessor.from_pretrained(folder))

    def segment(self, image: Image.Image, boxes: torch.Tensor) -> tuple[np.ndarray, list[float]]:
        """One mask and predicted IoU for each box in pixels of the image."""
        inputs = self.processor(image, input_boxes=[boxes.tolist()], return_tensors="pt")
        output = self.model(
            pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"].float(), multimask_output=False
        )
        masks = self.processor.post_process_masks(
            output.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
        )[0]
        return masks[:, 0].numpy(), output.iou_scores[0, :, 0].tolist()


def prompt_text(phrases: list[str]) -> str:
    """The caption for the detector: in lower case, with a dot after each phrase."""
    return "".join(f"{phrase.lower()}. " for phrase in phrases).strip()


def phrase_spans(ids: list[int]) -> list[range]:
    """The indices of each phrase's tokens, which are between [CLS] and the dots."""
    dots = [index for index, token in enumerate(ids) if token == DOT]
    return [range(start + 1, end) for start, end in zip([0, *dots], dots)]


def best_phrase(probabilities: torch.Tensor, spans: list[range]) -> tuple[int, bool]:
    """The phrase with the highest mean probability of its tokens, and whether the choice is clear.

    Only phrases with a token above the text threshold are considered, unless there is none.
    """
    means = [probabilities[list(span)].mean().item() for span in spans]
    best = [probabilities[list(span)].max().item() for span in spans]
    candidates = [index for index, value in enumerate(best) if value > TEXT_THRESHOLD] or list(range(len(spans)))
    candidates.sort(key=lambda index: -means[index])
    clear = len(candidates) == 1 or means[candidates[0]] - means[candidates[1]] > MARGIN
    return candidates[0], clear


def load_scenes(path: Path) -> ModuleType:
    """Imports the module that draws scenes."""
    specification = importlib.util.spec_from_file_location("scenes", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def phrases_for(generator: random.Random, objects: list) -> list[str]:
    """Phrases for some of the (colour, shape, ...) objects, and up to two phrases without an object in the scene."""
    pairs = [(colour, shape) for colour, shape, *_ in objects]
    pairs += [(generator.choice(COLOUR_WORDS), generator.choice(SHAPE_WORDS)) for _ in range(generator.randint(0, 2))]
    generator.shuffle(pairs)
    parts = generator.choice([slice(0, 2), slice(0, 2), slice(1, 2), slice(0, 1)])  # both, shape alone, colour alone
    return list(dict.fromkeys(" ".join(pair[parts]) for pair in pairs))[:4]


def draw(scenes: ModuleType, seed: int, width: int, height: int) -> tuple[bytes, list[str]]:
    """Draws a scene with few colours as a PNG. Returns the file and phrases for it."""
    generator = random.Random(seed)
    image, objects = scenes.scene(generator, width, height)
    file = io.BytesIO()
    image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue(), phrases_for(generator, objects)


def describe(detection: dict, mask: np.ndarray, iou_score: float) -> dict:
    """The entry of a detection in expected.json."""
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "box": [round(edge, 4) for edge in detection["box"].tolist()],
        "score": round(detection["score"], 6),
        "label": detection["label"],
        "phrase": detection["phrase"],
        "iou_score": round(iou_score, 6),
        "mask": {"size": encoded["size"], "counts": encoded["counts"].decode()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=MODELS, help="folder with detector/ and segmenter/")
    parser.add_argument("--scenes", type=Path, help="scenes.py (default: training/scenes.py in the models' folder)")
    parser.add_argument("--out", type=Path, default=OUT, help="where to write")
    arguments = parser.parse_args()
    run_exactly()
    scenes = load_scenes(arguments.scenes or arguments.models / "training" / "scenes.py")
    detector = Detector(arguments.models / "detector")
    segmenter = Segmenter(arguments.models / "segmenter")
    rows, files = [], {}
    for number, (width, height) in enumerate(SIZES):
        for attempt in range(1000):
            file, phrases = draw(scenes, 1000 * number + attempt, width, height)
            if not phrases or len(file) > 2000 + width * height / 10:
                continue
            image = Image.open(io.BytesIO(file)).convert("RGB")
            detections, clear = detector.detect(image, phrases)
            if clear:
                break
        else:
            raise RuntimeError(f"no scene of {width} x {height} has clear detections")
        name = f"scene_{number:02}.png"
        files[name] = file
        masks, iou_scores = [], []
        if detections:
            masks, iou_scores = segmenter.segment(image, torch.stack([detection["box"] for detection in detections]))
        rows.append(
            {
                "image": name,
                "width": width,
                "height": height,
                "prompt": prompt_text(phrases),
                "phrases": phrases,
                "detections": [describe(*parts) for parts in zip(detections, masks, iou_scores)],
            }
        )
        print(f"{name}: {width} x {height}, {rows[-1]['prompt']!r}: {len(detections)} detections, attempt {attempt}")
    if not any(row["detections"] for row in rows):
        raise RuntimeError("there are no detections in any scene: the detector needs more training to be tested")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        (arguments.out / name).write_bytes(file)
    lines = ",\n".join(json.dumps(row) for row in rows)
    (arguments.out / "expected.json").write_text(
        f'{{"box_threshold": {BOX_THRESHOLD}, "text_threshold": {TEXT_THRESHOLD}, "scenes": [\n{lines}\n]}}\n',
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
