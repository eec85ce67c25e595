"""Generates the tiny models in their authors' file format, and blocks of MobileSAM's image encoder with their results.

`plain/original.pth` holds the tensors of `plain/model.safetensors` under the original names, in a torch file.
tiny_vit.safetensors holds the stages of a small TinyViT with their inputs and outputs. Needs
requirements-full-size.txt.
"""

import argparse
import warnings
from collections import OrderedDict

import torch
from transformers import GroundingDinoForObjectDetection, SamModel

from fixtures import HERE, run_exactly, write_tensors
from original_names import check_grounding_dino, check_sam, grounding_dino_to_original, sam_to_original

# stage -> arguments; windows do not divide the resolution (height, width)
STAGES = {
    "convolutions": {"dim": 8, "input_resolution": (10, 14), "depth": 2, "out_dim": 12, "conv_expand_ratio": 4.0},
    "attention": {
        "dim": 12,
        "input_resolution": (9, 13),
        "depth": 2,
        "out_dim": 20,
        "num_heads": 3,
        "window_size": 5,
        "mlp_ratio": 4.0,
        "local_conv_size": 3,
    },
}


def halved(state: dict) -> OrderedDict:
    """The state dict in float16, as the tiny models are stored."""
    return OrderedDict((name, value.half() if value.is_floating_point() else value) for name, value in state.items())


def generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(sum(name.encode()))


def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=generator(name))


def detector() -> None:
    folder = HERE / "detector" / "plain"
    model = GroundingDinoForObjectDetection.from_pretrained(folder).eval()
    state = model.state_dict()
    original = grounding_dino_to_original(state, model.config, draw)
    check_grounding_dino(original, state, model.config)
    wrapped = OrderedDict((f"module.{name}", tensor) for name, tensor in halved(original).items())
    # training leaves other entries in such a file
    torch.save({"model": wrapped, "epoch": 3, "args": argparse.Namespace(lr=1e-4)}, folder / "original.pth")


def segmenter() -> None:
    folder = HERE / "segmenter" / "plain"
    state = SamModel.from_pretrained(folder).state_dict()
    original = sam_to_original(state)
    check_sam(original, state)
    torch.save(halved(original), folder / "original.pth")


def tiny_vit() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mobile_sam.modeling.tiny_vit_sam import BasicLayer, ConvLayer, PatchEmbed, PatchMerging

    shared = {"activation": torch.nn.GELU, "downsample": PatchMerging}
    blocks = {
        "patch_embed": PatchEmbed(3, 8, 16, torch.nn.GELU),
        "convolutions": ConvLayer(**STAGES["convolutions"], **shared),
        "attention": BasicLayer(**STAGES["attention"], **shared),
    }
    inputs = {
        "patch_embed": draw("pixels", (2, 3, 12, 16)),
        "convolutions": draw("map", (2, 8, 10, 14)),
        "attention": draw("tokens", (2, 9 * 13, 12)),
    }
    tensors = {}
    for name, block in blocks.items():
        for key, tensor in block.state_dict().items():
            if key.endswith("num_batches_tracked"):
                continue
            noise = draw(f"{name}.{key}", tensor.shape)
            if key.endswith("running_var"):
                noise = (0.2 * noise).exp()
            elif key.endswith(("bn.weight", "norm.weight")):
                noise = 1 + 0.1 * noise
            elif tensor.dim() > 1 and not key.endswith("attention_biases"):
                noise = noise / tensor[0].numel() ** 0.5
            else:
                noise = 0.1 * noise
            tensor.copy_(noise)
            tensors[f"{name}.{key}"] = tensor
        # eval() computes the tables that are not used in training
        block.eval()
        tensors[f"{name}.input"] = inputs[name]
        tensors[f"{name}.output"] = block(inputs[name])
    write_tensors(HERE / "segmenter" / "tiny_vit.safetensors", tensors)


def main() -> None:
    run_exactly()
    detector()
    segmenter()
    tiny_vit()


if __name__ == "__main__":
    main()
