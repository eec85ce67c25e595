"""Exports the models of the comparison from the checkpoints of models.py to ONNX files.

    python export.py MODELS ONNX [WORK ...]

The detectors are exported with fixed shapes (an image of 800x1066, eight tokens) by torch's TorchScript exporter,
because the newer exporter cannot translate them. The newer exporter exports the image encoders and the mask decoder.
The mask decoder has a fixed number of boxes, and includes the upscaling of its masks to the size of the image.
"""

import sys
import warnings
from pathlib import Path
from unittest import mock

import onnxruntime
import torch
from torch import nn

from inputs import inputs_of, resized
from models import MOBILE_SAM, NAMES, SAM, load
from sizes import BOXES, IMAGE_SIZE, SEGMENTER_SIDE
from works import FAMILIES, is_detector


class Detector(nn.Module):
    """Grounding DINO with positional arguments and two results."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values, pixel_mask, input_ids, token_type_ids, attention_mask):
        output = self.model(
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            attention_mask=attention_mask,
        )
        return output.logits, output.pred_boxes


class Encoder(nn.Module):
    """The image encoder of transformers' SAM; the result is only its tensor."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixel_values):
        return self.encoder(pixel_values)[0]


class Masks(nn.Module):
    """From boxes to masks of the image's size: prompt encoder, mask decoder and `post_process_masks`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image_embeddings, input_boxes):
        output = self.model(image_embeddings=image_embeddings, input_boxes=input_boxes, multimask_output=False)
        masks = output.pred_masks[0]
        height, width = resized(IMAGE_SIZE)
        masks = nn.functional.interpolate(masks, (SEGMENTER_SIDE, SEGMENTER_SIDE), mode="bilinear")
        masks = nn.functional.interpolate(masks[..., :height, :width], IMAGE_SIZE, mode="bilinear")
        return masks > 0, output.iou_scores


def running(combine, empty: int):
    """torch.cummax or cummin of `[batch, length]`, computed from all pairs of positions."""

    def cumulative(values: torch.Tensor, dim: int):
        length = values.shape[1]
        earlier = torch.tril(torch.ones(length, length, dtype=torch.bool))
        pairs = values[:, None, :].expand(-1, length, -1)
        result = combine(torch.where(earlier, pairs, torch.full_like(pairs, empty)), -1)
        return result, result

    return cumulative


# ONNX has neither operation
CUMULATIVE = {"cummax": running(torch.amax, -1), "cummin": running(torch.amin, 1 << 30)}

# the work items of the default set that have a file
DEFAULT = (*NAMES, "masks-1", f"masks-{BOXES}")


def export(work: str, models: Path, folder: Path) -> None:
    """Writes one file, unless it exists; an existing file is complete."""
    target = folder / f"{work}.onnx"
    if target.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{work}.partial.onnx"
    # the newer exporter; it cannot translate the detectors
    settings = {"opset_version": 18, "dynamo": True, "external_data": False, "verbose": False}
    if is_detector(work):
        model, outputs = Detector(load(work, models)), ["logits", "pred_boxes"]
        settings = {"opset_version": 17, "dynamo": False}
    elif work in FAMILIES:
        import families

        model, outputs = families.module(work, models)
    elif work == MOBILE_SAM:
        model, outputs = load(work, models).image_encoder, ["image_embeddings"]
    elif work == SAM:
        model, outputs = Encoder(load(work, models).vision_encoder), ["image_embeddings"]
    else:
        model, outputs = Masks(load(SAM, models)), ["masks", "iou_scores"]
    inputs = {name: torch.from_numpy(array) for name, array in inputs_of(work).items()}
    with torch.no_grad(), warnings.catch_warnings(), mock.patch.multiple(torch, **CUMULATIVE):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            tuple(inputs.values()),
            str(partial),
            input_names=list(inputs),
            output_names=outputs,
            **settings,
        )
    with torch.no_grad():
        compare(partial, inputs, model(*inputs.values()))
    partial.rename(target)
    print(f"made {target}", flush=True)


def compare(file: Path, inputs: dict[str, torch.Tensor], expected) -> None:
    """Checks that ONNX Runtime computes the same from the file as torch from the module.

    A small share of the values may differ: two queries of the detector with almost equal scores may be swapped.
    """
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    given = {item.name: inputs[item.name].numpy() for item in session.get_inputs()}
    results = session.run(None, given)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for item, result, wanted in zip(session.get_outputs(), results, expected, strict=True):
        result, wanted = torch.from_numpy(result), wanted.detach()
        if wanted.dtype == torch.bool:
            difference, limit = (result != wanted).float().mean().item(), 1e-3
        else:
            finite = wanted.isfinite()
            differences = (result[finite] - wanted[finite]).abs()
            difference = differences.kthvalue(max(1, int(0.98 * differences.numel()))).values.item()
            limit = 1e-3 * max(1.0, wanted[finite].abs().max().item())
        print(f"{file.name}: {item.name}: difference to torch {difference:.1e}, allowed {limit:.1e}")
        if not difference <= limit:
            raise SystemExit(f"the results of {file} differ from those of torch")


if __name__ == "__main__":
    for wanted in sys.argv[3:] or DEFAULT:
        export(wanted, Path(sys.argv[1]), Path(sys.argv[2]))
