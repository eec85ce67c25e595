"""What the generators of the segmenters' newer families share: prompts in pixels, recording, and the check of the weights.

The cases and their keys are those of generate_segmenter.py.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from transformers import ProcessorMixin

from fixtures import Recorder, write_tensors
from generate_segmenter import CASES, SHORT, earlier_mask

Tensors = dict[str, torch.Tensor]

TOLERANCE = 1e-4  # between two implementations of the same model, with numbers of the order of 1


def prompts_of(case: dict, size: tuple[int, int], target: tuple[int, int], mask_side: int) -> tuple[Tensors, Tensors]:
    """The prompts of a case in pixels of the original, and in pixels of the model's input.

    `size` is the (height, width) of the original, `target` the size to which the model's preprocessing resizes it.
    """
    (height, width), (new_height, new_width) = size, target
    originals, prompts = {}, {}
    for name, key in (("input_boxes", "boxes"), ("input_points", "points")):
        if key in case:
            pixels = torch.tensor([case[key]], dtype=torch.float64)
            pairs = pixels.reshape(-1, 2) * torch.tensor([width, height], dtype=torch.float64)
            scaled = pairs * torch.tensor([new_width / width, new_height / height], dtype=torch.float64)
            originals[f"original_{name}"] = pairs.reshape(pixels.shape).float()
            prompts[name] = scaled.reshape(pixels.shape).float()
    if "labels" in case:
        prompts["input_labels"] = torch.tensor([case["labels"]])
    if case.get("mask"):
        prompts["input_masks"] = earlier_mask(mask_side)
    return originals, prompts


def copies(prompts: Tensors) -> Tensors:
    """Copies of the prompts: some models change their inputs in place."""
    return {name: tensor.clone() for name, tensor in prompts.items()}


def longest_edge(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The size of an image whose longest edge is resized to `side`, as all families derived from SAM compute it."""
    scale = side / max(size)
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def write_cases(
    folder: Path,
    size: tuple[int, int],
    target: tuple[int, int],
    mask_side: int,
    parts: tuple[nn.Module, nn.Module],
    predict: Callable[[Tensors, bool], Tensors],
    finish: Callable[[torch.Tensor, bool], torch.Tensor],
) -> dict[str, Tensors]:
    """Writes one file per case, and returns their tensors.

    `parts` are the prompt encoder and the two-way transformer. `predict(prompts, multimask)` returns `low_res_masks`
    (1 N M h w), `iou_scores` and other results. `finish(low_res_masks, binarize)` returns masks of the original size.
    """
    results = {}
    for name, case in CASES.items():
        originals, prompts = prompts_of(case, size, target, mask_side)
        recorder = Recorder()

        def keep(names: tuple[str, str], output: tuple, recorder: Recorder = recorder) -> None:
            for key, tensor in zip(names, output):
                recorder.keep(key, tensor)

        keys = (("sparse_embeddings", "dense_embeddings"), ("decoder.tokens_out", "decoder.image_out"))
        hooks = [
            recorder.on_call(part, lambda _inputs, _keywords, output, names=names: keep(names, output))
            for part, names in zip(parts, keys)
        ]
        output = predict(copies(prompts), case["multimask"])
        for hook in hooks:
            hook.remove()
        recorded = recorder.tensors
        for key in ("sparse_embeddings", "decoder.tokens_out", "decoder.image_out"):
            if recorded[key].dim() == 3:  # the authors' code has no batch of images
                recorded[key] = recorded[key][None]
        tensors = originals | prompts | recorded | output
        tensors |= {
            "original_size": torch.tensor(size),
            "reshaped_input_size": torch.tensor(target),
            "final_masks": finish(output["low_res_masks"], True),
            "final_logits": finish(output["low_res_masks"], False),
        }
        results[name] = dict(tensors)
        if not case.get("mask") and name != "box":
            del tensors["dense_embeddings"]  # the same vector everywhere, as in `box`
        if name in SHORT:
            del tensors["decoder.image_out"], tensors["final_logits"]
        write_tensors(folder / f"{name}.safetensors", tensors, multimask_output=case["multimask"])
    return results


def check_prompts(processor: ProcessorMixin, image: Image.Image, cases: dict) -> None:
    """Checks that transformers' processor converts the prompts to the same pixels of the model's input."""
    for name, tensors in cases.items():
        pixels = {key: tensors[f"original_{key}"].tolist() for key in ("input_boxes", "input_points") if key in tensors}
        if "input_labels" in tensors:
            pixels["input_labels"] = tensors["input_labels"].tolist()
        encoded = processor(image, return_tensors="pt", **pixels)
        for key in pixels:
            require_close(f"{name}, {key} of the processor", tensors[key].float(), encoded[key].float())


def require_close(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Prints the largest difference of two implementations' results, and refuses one above the tolerance."""
    if ours.shape != theirs.shape:
        raise ValueError(f"{what}: shapes {tuple(ours.shape)} and {tuple(theirs.shape)}")
    difference = (ours - theirs).abs().max().item()
    print(f"  {what}: largest difference {difference:.1e} (values up to {theirs.abs().max():.3g})")
    if not difference < TOLERANCE:
        raise ValueError(f"{what}: differs by {difference:.1e}, more than {TOLERANCE:.0e}")


def require_lively(state: Tensors) -> None:
    """Checks that no tensor of a file contains a neutral value (0 or 1), which would hide an error."""
    for name, tensor in state.items():
        if tensor.is_floating_point():
            neutral = ((tensor == 0) | (tensor == 1)).float().mean().item()
            if neutral > 0.2:  # a norm weight is rounded to 1 now and then
                raise ValueError(f"{name}: {neutral:.0%} of the numbers are 0 or 1")


def halved(state: Tensors) -> Tensors:
    """The state dict in float16, as the tiny models are stored."""
    return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
