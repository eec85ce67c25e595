"""Converts state dicts of transformers to the names and joined matrices of the original Grounding DINO and SAM files.

Both conversions invert transformers' own conversion scripts. `check_*` verifies a conversion: it runs such a script on the
result, and every tensor must be equal, bit by bit.
"""

import re
from collections import OrderedDict

import torch
from segment_anything.build_sam import _build_sam
from transformers.models.grounding_dino import convert_grounding_dino_to_hf as from_grounding_dino
from transformers.models.sam import convert_sam_to_hf as from_sam

State = dict[str, torch.Tensor]

# The order of the modules in the original model, and of the names in its files.
ORDER = ("transformer.", "bert.", "feat_map.", "input_proj.", "backbone.", "bbox_embed.", "label_enc.")

# Prefixes that the conversion script replaces: transformers -> original.
PREFIXES = {
    "model.text_backbone.": "bert.",
    "model.input_proj_vision.": "input_proj.",
    "model.text_projection.": "feat_map.",
    "model.decoder.reference_points_head.": "transformer.decoder.ref_point_head.",
    "model.decoder.bbox_embed.": "transformer.decoder.bbox_embed.",
    "model.encoder_output_bbox_embed.": "transformer.enc_out_bbox_embed.",
    "model.enc_output.": "transformer.enc_output.",
    "model.enc_output_norm.": "transformer.enc_output_norm.",
    "bbox_embed.": "bbox_embed.",
}
SWIN_ATTENTION = re.compile(
    r"model\.backbone\.conv_encoder\.model\.encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.self"
)
SWIN_INDEX = "relative_position_index"
UNUSED = [  # tensors of the original files, with the script's names, that transformers does not use
    "label_enc.weight",
    "model.text_backbone.embeddings.position_ids",
    "model.text_backbone.pooler.dense.bias",
    "model.text_backbone.pooler.dense.weight",
]
LABELS = 2001  # rows of `label_enc`, which only training uses: 2,000 labels and one for denoising


def swin_index(name: str) -> str:
    """The original name of the relative position index of a Swin block."""
    level, block = SWIN_ATTENTION.match(name).groups()
    return f"backbone.0.layers.{level}.blocks.{block}.attn.{SWIN_INDEX}"


def grounding_dino_to_original(state: State, config, draw) -> State:
    """The original state dict. `draw(name, shape)` generates the tensors that transformers does not have."""
    renamed = {new: old for old, new in from_grounding_dino.create_rename_keys({}, config)}
    renamed |= {
        name: name.replace(new, old, 1) for name in state for new, old in PREFIXES.items() if name.startswith(new)
    }
    original = {}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        attention, _, part = module.rpartition(".")
        swin = SWIN_ATTENTION.match(attention)
        if name in renamed:
            original[renamed[name]] = tensor  # not a copy: shared tensors stay shared
        elif leaf == SWIN_INDEX:
            original[swin_index(name)] = tensor
        elif part == "query":
            joined = torch.cat([state[f"{attention}.{which}.{leaf}"] for which in ("query", "key", "value")])
            if swin:
                original[f"backbone.0.layers.{swin[1]}.blocks.{swin[2]}.attn.qkv.{leaf}"] = joined
            else:
                original[renamed[f"{attention}.in_proj_{leaf}"]] = joined
        elif part not in ("key", "value"):
            raise KeyError(f"{name} has no original name")
    positions = config.text_config.max_position_embeddings
    width = config.text_config.hidden_size
    original["bert.embeddings.position_ids"] = torch.arange(positions)[None]
    original["bert.pooler.dense.weight"] = draw("bert.pooler.dense.weight", (width, width)) / width**0.5
    original["bert.pooler.dense.bias"] = 0.1 * draw("bert.pooler.dense.bias", (width,))
    original["label_enc.weight"] = draw("label_enc.weight", (LABELS, config.d_model))

    def position(name: str) -> int:
        return next(index for index, prefix in enumerate(ORDER) if name.startswith(prefix))

    return OrderedDict(sorted(original.items(), key=lambda item: position(item[0])))


def check_grounding_dino(original: State, state: State, config) -> None:
    """Checks that the steps of the conversion script convert `original` to `state`."""
    converted = {name.replace("module.", ""): tensor for name, tensor in original.items()}
    for old, new in from_grounding_dino.create_rename_keys(dict(converted), config):
        from_grounding_dino.rename_key(converted, old, new)
    from_grounding_dino.read_in_q_k_v_encoder(converted, config)
    from_grounding_dino.read_in_q_k_v_text_enhancer(converted, config)
    from_grounding_dino.read_in_q_k_v_decoder(converted, config)
    indices = {name: tensor for name, tensor in state.items() if name.endswith(SWIN_INDEX)}
    learned = {name: tensor for name, tensor in state.items() if name not in indices}
    require_equal(converted, learned)
    for name, tensor in indices.items():  # a buffer that transformers computes itself
        if not torch.equal(converted[swin_index(name)], tensor):
            raise ValueError(f"{name} is different after the conversion")
    unused = sorted(name for name in converted if name not in state and not name.endswith(SWIN_INDEX))
    if unused != UNUSED:
        raise ValueError(f"unexpected tensors: {unused}")
    print(f"  the conversion script gives the same {len(learned)} tensors; it does not use {', '.join(unused)}")


def sam_to_original(state: State) -> State:
    """The original state dict."""
    depth = 1 + max(int(found[1]) for name in state if (found := re.match(r"vision_encoder\.layers\.(\d+)\.", name)))
    with torch.device("meta"):  # only for its names
        names = _build_sam(64, depth, 2, list(range(depth))).state_dict()
    original = OrderedDict()
    for name in names:
        new = next(iter(convert_sam({name: None})))
        original[name] = state[new]
    return original


def convert_sam(original: State) -> State:
    """Applies transformers' `replace_keys` to a state dict or a part of one."""
    table = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    converted = from_sam.replace_keys({table: None} | dict(original))
    if table not in original:
        del converted["prompt_encoder.shared_embedding.positional_embedding"]
        del converted["shared_image_embedding.positional_embedding"]
    return converted


def check_sam(original: State, state: State) -> None:
    """Checks that the conversion script converts `original` to `state`."""
    converted = from_sam.replace_keys(dict(original))
    require_equal(converted, state)
    if set(converted) != set(state):
        raise ValueError(f"unexpected tensors: {sorted(set(converted) - set(state))}")
    print(f"  the conversion script gives the same {len(state)} tensors and no others")


def require_equal(converted: State, state: State) -> None:
    """Every tensor of `state` must be equal in `converted`, bit by bit."""
    for name, tensor in state.items():
        if name not in converted:
            raise ValueError(f"{name} is missing after the conversion")
        if converted[name].dtype != tensor.dtype or not torch.equal(converted[name], tensor):
            raise ValueError(f"{name} is different after the conversion")
