"""Random weights without neutral values, rounded to float16.

With the default initialisation, norms, biases and layer scales have no effect, so that an implementation without them still
equals the reference. Here every tensor gets random values from a generator that is seeded with its name, rounded to float16:
the reference computes in float32 with exactly the stored values.
"""

import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)
NORM_CLASSES = ("LayerNorm", "LayerNorm2d")  # ends of the names of the models' own norms
TABLES = ("level_embed", "positional_embedding", "positional_encoding_gaussian_matrix")
# Buffers that a file stores and that training changes.
BUFFERS = (*TABLES, "running_mean", "running_var")
# The last matrices of residual branches in the detectors' text encoder and feature enhancer.
BRANCH_ENDS = ("output.dense", "self_attn.out_proj", "self_attn.output_proj", "fc2")


def redraw(model: nn.Module, seed: int) -> None:
    """Gives every parameter and random buffer of `model` new random values, in place."""
    norm_weights = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, NORMS) or type(module).__name__.endswith(NORM_CLASSES)
    }
    embeddings = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    transposed = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.ConvTranspose2d)}
    tensors = dict(model.named_parameters())
    tensors |= {name: buffer for name, buffer in model.named_buffers() if name.endswith(BUFFERS)}
    for name, tensor in tensors.items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        noise = torch.randn(tensor.shape, generator=generator)
        if name in norm_weights:
            value = 1 + 0.1 * noise
        elif name.endswith(("vision_param", "text_param")):
            value = 0.2 + 0.05 * noise
        elif name.endswith("running_var"):
            value = (0.2 * noise).exp()
        elif name.endswith("running_mean"):
            value = 0.1 * noise
        elif name.endswith("sampling_offsets.bias"):
            value = 2 * noise  # in cells: many sampling points are outside small maps
        elif name.endswith("bias"):
            value = 0.1 * noise
        elif "relative_position_bias_table" in name or "rel_pos_" in name or name.endswith("attention_biases"):
            value = 0.3 * noise
        elif name in embeddings or name.endswith(TABLES):
            value = noise
        elif name.endswith(("pos_embed", "pos_embed_window", "no_memory_embedding")):
            value = 0.5 * noise
        elif name in transposed:
            value = (
                noise / tensor.shape[0] ** 0.5
            )  # the stride equals the kernel: each output depends on one input position
        else:
            value = noise / tensor[0].numel() ** 0.5
        tensor.data.copy_(value.half().float())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.fill_(1000)


def temper(model: nn.Module, norm_scale: float = 0.2) -> None:
    """Scales weights of a detector so that its tokens and cells stay different and its outputs are not saturated.

    Attention with random weights averages its inputs. After many layers, all tokens of a text and all cells of a picture
    would be nearly the same vector. Dividing the last matrices of residual branches by sqrt(branches) keeps them different.
    Token logits are products of two normed vectors of 256 numbers, about 8 without scaling, and box deltas add up over seven
    heads. After their sigmoid both would mostly be 0 or 1. `norm_scale` scales the norms before the token logits: 1 for a family
    that divides the product by the root of its length.
    """
    core = model.model
    depth = {"text_backbone": model.config.text_config.num_hidden_layers, "encoder": model.config.encoder_layers}
    for name, module in core.named_modules():
        part = name.partition(".")[0]
        if part in depth and name.endswith(BRANCH_ENDS):
            module.weight.data /= (2 * depth[part]) ** 0.5
            module.bias.data /= (2 * depth[part]) ** 0.5
    for norm in (core.enc_output_norm, core.decoder.layer_norm):
        norm.weight.data *= norm_scale
        norm.bias.data *= norm_scale
    # the layers of the decoder share one head, or each has its own
    for head in dict.fromkeys((core.encoder_output_bbox_embed, *model.bbox_embed)):
        head.layers[-1].weight.data *= 0.3
        head.layers[-1].bias.data *= 0.3


def save_weights(model: nn.Module, path: Path, drop: tuple[str, ...] = ()) -> None:
    """Writes the weights as float16 under the published names.

    A tensor with several names is written once, under the first name that contains none of the texts in `drop`.
    """
    kept = {}
    for name, tensor in model.state_dict().items():
        if any(part in name for part in drop):
            continue
        kept.setdefault((tensor.data_ptr(), tuple(tensor.shape)), (name, tensor))
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).clone().contiguous()
        for name, tensor in kept.values()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)
