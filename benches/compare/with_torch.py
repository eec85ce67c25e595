"""Measures one work item in torch, in a process of its own; prints the result as a line of JSON.

    python with_torch.py WORK --models FOLDER --threads N --runs N
"""

from collections.abc import Callable

import torch
from torch import nn

from child import Child, arguments, measure
from inputs import inputs_of, resized
from models import MOBILE_SAM, SAM, load
from sizes import BOXES, IMAGE_SIZE
from works import FAMILIES, is_detector


def tensors(work: str) -> dict[str, torch.Tensor]:
    """The arguments of a model."""
    return {name: torch.from_numpy(array) for name, array in inputs_of(work).items()}


def work(child: Child) -> Callable:
    """Loads the models, and returns the function to time."""
    name, models = child.work, child.models
    if name == "request":
        return request(load("grounding-dino-tiny", models), load(MOBILE_SAM, models))
    inputs = tensors(name)
    if is_detector(name):
        model = load(name, models)
    elif name in FAMILIES:
        import families

        model, _ = families.module(name, models)
        return lambda: model(*inputs.values())
    elif name == SAM:
        model = load(name, models).vision_encoder
    elif name == MOBILE_SAM:
        model, inputs = load(name, models).image_encoder, {"x": inputs["pixel_values"]}
    else:
        return masks(load(SAM, models), inputs)
    return lambda: model(**inputs)


def masks(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Callable:
    """From boxes to masks of the image's size, with one image embedding."""
    from transformers import SamImageProcessor

    processor = SamImageProcessor()
    sizes = torch.tensor([IMAGE_SIZE]), torch.tensor([resized(IMAGE_SIZE)])

    def run() -> list:
        output = model(**inputs, multimask_output=False)
        return processor.post_process_masks(output.pred_masks, *sizes)

    return run


def request(detector: nn.Module, segmenter: nn.Module) -> Callable:
    """From an image and a prompt to boxes, and from twenty boxes to masks, with MobileSAM's own code."""
    inputs, square = tensors("grounding-dino-tiny"), tensors(MOBILE_SAM)["pixel_values"]
    prompts = tensors(f"masks-{BOXES}")["input_boxes"][0]

    def run() -> tuple:
        found = detector(**inputs)
        sparse, dense = segmenter.prompt_encoder(points=None, boxes=prompts, masks=None)
        low_resolution, _ = segmenter.mask_decoder(
            image_embeddings=segmenter.image_encoder(square),
            image_pe=segmenter.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return found, segmenter.postprocess_masks(low_resolution, resized(IMAGE_SIZE), IMAGE_SIZE) > 0

    return run


if __name__ == "__main__":
    child = arguments(__doc__)
    torch.set_num_threads(child.threads)
    with torch.inference_mode():
        measure(work(child), child)
