"""Measures the exported models on held-out scenes, with transformers.

    python evaluate.py --models .. --output figures.json

The detector's results are selected as in groundling: a box counts if its highest
token probability exceeds the threshold, its phrase is the one whose tokens have the
highest mean probability, and NMS removes overlapping boxes of the same phrase.
A box is right if its phrase is right and its IoU with a shape that was not found yet
is at least 0.5. Masks are prompted with the true boxes (one mask) or with one point
inside (the best of three masks by predicted IoU) and compared at the size of the
picture. Then they are corrected with clicks, with and without the earlier mask as a
prompt.
"""

import argparse
import json
import os
import random

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, label
from transformers import (
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    PreTrainedTokenizerFast,
    SamImageProcessor,
    SamModel,
    SamProcessor,
)

from detector import draw_prompt, matches, phrase_text
from scenes import COLOUR_NAMES, SHAPE_NAMES, random_sides, scene

SEED = 20_000_003  # seed of the held-out scenes; no training script uses it
KINDS = ("any", "both", "shape", "colour", "mixed", "one phrase")


def held_out(count, sides=None):
    """The held-out scenes: half of them square (160x160), the others up to 3:2; or all of size `sides`."""
    rng = random.Random(SEED)
    found = []
    while len(found) < count:
        picture, shapes = scene(rng, *(sides or random_sides(rng)))
        if shapes:
            found.append((picture, shapes))
    return found


def box_iou(a, b):
    """IoU of every box of a [N, 4] with every box of b [M, 4]."""
    size = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    inter = size.clip(0).prod(-1)
    area = lambda box: (box[:, 2:] - box[:, :2]).prod(-1)
    return inter / (area(a)[:, None] + area(b)[None] - inter)


class Detector:
    """The exported detector; its results are selected as in groundling."""

    def __init__(self, folder):
        self.model = GroundingDinoForObjectDetection.from_pretrained(folder, torch_dtype=torch.float32).eval()
        self.processor = GroundingDinoImageProcessor.from_pretrained(folder)
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=os.path.join(folder, "tokenizer.json"), clean_up_tokenization_spaces=True
        )

    @torch.no_grad()
    def raw(self, picture, phrases):
        """Boxes [Q, 4] in pixels, scores [Q] and phrase probabilities [Q, P] of all queries."""
        text = ". ".join(phrases) + "."
        tokens = self.tokenizer(text, return_offsets_mapping=True)
        inputs = self.processor(images=picture, return_tensors="pt")
        output = self.model(
            pixel_values=inputs["pixel_values"],
            pixel_mask=inputs["pixel_mask"],
            input_ids=torch.tensor([tokens["input_ids"]]),
            attention_mask=torch.tensor([tokens["attention_mask"]]),
            token_type_ids=torch.zeros(1, len(tokens["input_ids"]), dtype=torch.long),
        )
        probability = output.logits[0].sigmoid().numpy()
        position, means = 0, []
        for phrase in phrases:
            end = position + len(phrase)
            span = [
                index
                for index, (a, b) in enumerate(tokens["offset_mapping"])
                if b > a and a >= position and b <= end
            ]
            means.append(probability[:, span].mean(-1))
            position = end + 2
        x, y, w, h = output.pred_boxes[0].numpy().T
        boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)
        boxes = boxes * np.array([picture.width, picture.height] * 2)
        return boxes, probability.max(-1), np.stack(means, -1)

    def detect(self, picture, phrases, threshold=0.3, nms=0.7):
        """Boxes, scores and phrase indices above the threshold, sorted by score, best first."""
        boxes, scores, means = self.raw(picture, phrases)
        return select(boxes, scores, means, threshold, nms)


def select(boxes, scores, means, threshold=0.3, nms=0.7):
    """Applies the threshold, the labels and, unless nms is None, NMS to the queries."""
    order = [q for q in np.argsort(-scores) if scores[q] > threshold]
    labels = means.argmax(-1)
    kept = []
    for q in order:
        same = [k for k in kept if labels[k] == labels[q]]
        if nms is None or not same or box_iou(boxes[[q]], boxes[same]).max() <= nms:
            kept.append(q)
    return boxes[kept], scores[kept], labels[kept]


class Count:
    """Accumulates precision, recall and mean IoU over scenes."""

    def __init__(self):
        self.right = self.wrong = self.missed = 0
        self.ious = []

    def add(self, boxes, labels, true_boxes, true_labels):
        free = set(range(len(true_boxes)))
        overlap = box_iou(boxes, true_boxes) if len(boxes) and len(true_boxes) else None
        for k in range(len(boxes)):
            fitting = [j for j in free if true_labels[j] == labels[k] and overlap[k, j] >= 0.5]
            if fitting:
                best = max(fitting, key=lambda j: overlap[k, j])
                free.remove(best)
                self.right += 1
                self.ious.append(float(overlap[k, best]))
            else:
                self.wrong += 1
        self.missed += len(free)

    def figures(self):
        return dict(
            precision=round(self.right / max(1, self.right + self.wrong), 4),
            recall=round(self.right / max(1, self.right + self.missed), 4),
            mean_iou=round(float(np.mean(self.ious)), 4) if self.ious else 0.0,
            objects=self.right + self.missed,
        )


def ask(rng, shapes, kind):
    """A prompt of the given kind for a scene, and the boxes and phrase indices of the shapes that it names."""
    objects = [(COLOUR_NAMES.index(item.colour), SHAPE_NAMES.index(item.shape)) for item in shapes]
    if kind == "one phrase":
        prompt = draw_prompt(rng, objects, most=1)
    else:
        prompt = draw_prompt(rng, objects, kind=None if kind == "any" else kind)
    boxes, labels = [], []
    for item, pair in zip(shapes, objects):
        for index, phrase in enumerate(prompt):
            if matches(phrase, *pair):
                boxes.append(item.box)
                labels.append(index)
    return [phrase_text(phrase) for phrase in prompt], np.array(boxes, float).reshape(-1, 4), labels


def measure_detector(detector, scenes, kind, threshold, errors=None):
    """The figures with and without NMS for prompts of one kind."""
    rng = random.Random(f"{SEED} {kind}")
    with_nms, without = Count(), Count()
    for picture, shapes in scenes:
        phrases, boxes, labels = ask(rng, shapes, kind)
        answer = detector.raw(picture, phrases)
        for count, nms in ((with_nms, 0.7), (without, None)):
            found, scores, named = select(*answer, threshold, nms)
            count.add(found, named, boxes, labels)
        if errors is not None:
            found, scores, named = select(*answer, threshold)
            errors.append((phrases, boxes, labels, found, scores, named, shapes))
    return dict(nms=with_nms.figures(), no_nms=without.figures())


class Segmenter:
    """The exported segmenter."""

    def __init__(self, folder):
        self.model = SamModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
        self.processor = SamProcessor(SamImageProcessor.from_pretrained(folder))

    @torch.no_grad()
    def masks(self, picture, boxes=None, points=None):
        """One mask per box or per point, at the size of the picture."""
        prompt = dict(input_boxes=[boxes]) if boxes is not None else dict(input_points=[[[p] for p in points]])
        inputs = self.processor(images=picture, return_tensors="pt", **prompt)
        sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
        if points is not None:
            inputs["input_labels"] = torch.ones(inputs["input_points"].shape[:3], dtype=torch.long)
        inputs = {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}
        output = self.model(**inputs, multimask_output=points is not None)
        masks = self.processor.image_processor.post_process_masks(output.pred_masks, *sizes)[0]
        best = output.iou_scores[0].argmax(-1)
        return masks[torch.arange(len(masks)), best].numpy()


    @torch.no_grad()
    def encode(self, picture):
        """The embedding of a picture, and its sizes."""
        inputs = self.processor(images=picture, return_tensors="pt")
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        return self.model.get_image_embeddings(inputs["pixel_values"]), sizes

    @torch.no_grad()
    def clicked(self, encoded, clicks, earlier=None):
        """One mask of the picture's size and its logits for each list of clicks (x, y, label), all of the same length.

        With the logits of earlier masks [N, 1, h, w] the model predicts one mask, otherwise the best of three counts.
        """
        embedding, (original, reshaped) = encoded
        height, width = (reshaped[0] / original[0]).tolist()
        count = len(clicks)
        output = self.model(
            image_embeddings=embedding.expand(count, -1, -1, -1),
            input_points=torch.tensor([[[[x * width, y * height] for x, y, _ in of_one]] for of_one in clicks]),
            input_labels=torch.tensor([[[is_inside for _, _, is_inside in of_one]] for of_one in clicks]),
            input_masks=earlier,
            multimask_output=earlier is None,
        )
        best = output.iou_scores[:, 0].argmax(-1)
        logits = output.pred_masks[torch.arange(count), 0, best][:, None]
        masks = self.processor.image_processor.post_process_masks(logits[None], original, reshaped)[0]
        return masks[:, 0].numpy(), logits


def correction(found, truth):
    """A click (x, y, 1 if it is inside) into the largest part where a mask is wrong, far from the part's edge."""
    best = 0, None
    for wrong, is_inside in ((truth & ~found, 1), (found & ~truth, 0)):
        parts, count = label(np.pad(wrong, 1), np.ones((3, 3)))
        sizes = np.bincount(parts.ravel())[1:]
        if count and sizes.max() > best[0]:
            depths = distance_transform_edt(parts == 1 + sizes.argmax())
            y, x = np.unravel_index(depths.argmax(), depths.shape)
            best = sizes.max(), (float(x - 1), float(y - 1), is_inside)
    return best[1]


def measure_clicks(segmenter, scenes, feed, count=3):
    """The mean IoU after each of `count` clicks, with or without the earlier mask as a prompt."""
    ious = [[] for _ in range(count)]
    for picture, shapes in scenes:
        encoded = segmenter.encode(picture)
        clicks, earlier = [[] for _ in shapes], None
        masks = [np.zeros_like(item.mask) for item in shapes]
        for of_number in ious:
            for of_one, mask, item in zip(clicks, masks, shapes):
                of_one.append(correction(mask, item.mask) or of_one[-1])
            masks, logits = segmenter.clicked(encoded, clicks, earlier)
            earlier = logits if feed else None
            of_number += [float((m & item.mask).sum() / (m | item.mask).sum()) for m, item in zip(masks, shapes)]
    return [round(float(np.mean(of_number)), 4) for of_number in ious]


def measure_segmenter(segmenter, scenes):
    """The mean IoU of masks from true boxes, and from one point inside each shape."""
    rng = random.Random(f"{SEED} points")
    from_boxes, from_points = [], []
    for picture, shapes in scenes:
        boxes = [[float(v) for v in item.box] for item in shapes]
        points = []
        for item in shapes:
            rows, columns = np.nonzero(item.mask)
            chosen = rng.randrange(len(rows))
            points.append([float(columns[chosen]), float(rows[chosen])])
        for found, ious in (
            (segmenter.masks(picture, boxes=boxes), from_boxes),
            (segmenter.masks(picture, points=points), from_points),
        ):
            for mask, item in zip(found, shapes):
                ious.append(float((mask & item.mask).sum() / (mask | item.mask).sum()))
    return dict(
        box=round(float(np.mean(from_boxes)), 4),
        box_median=round(float(np.median(from_boxes)), 4),
        point=round(float(np.mean(from_points)), 4),
        masks=len(from_boxes),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="..", help="the folder with detector/ and segmenter/")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--large", type=int, default=50, help="number of additional scenes of 640x480")
    parser.add_argument("--threshold", type=float, default=0.3)
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    parser.add_argument("--only", choices=["detector", "segmenter"])
    parser.add_argument("--output", help="the JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    scenes, large = held_out(args.scenes), held_out(args.large, (640, 480)) if args.large else []
    figures = {}
    if args.only != "segmenter":
        detector = Detector(os.path.join(args.models, "detector"))
        for kind in args.kinds:
            figures[f"detector, {kind}"] = measure_detector(detector, scenes, kind, args.threshold)
            print(kind, figures[f"detector, {kind}"], flush=True)
        if large:
            figures["detector, any, 640x480"] = measure_detector(detector, large, "any", args.threshold)
            print("640x480", figures["detector, any, 640x480"], flush=True)
    if args.only != "detector":
        segmenter = Segmenter(os.path.join(args.models, "segmenter"))
        figures["segmenter"] = measure_segmenter(segmenter, scenes)
        print("segmenter", figures["segmenter"], flush=True)
        for name, feed in (("clicks, earlier mask as prompt", True), ("clicks alone", False)):
            figures[name] = measure_clicks(segmenter, scenes, feed)
            print(name, figures[name], flush=True)
        if large:
            figures["segmenter, 640x480"] = measure_segmenter(segmenter, large)
            print("segmenter 640x480", figures["segmenter, 640x480"], flush=True)
    if args.output:
        with open(args.output, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
