"""Converts state dicts of transformers to the names of the original SAM 2 and HQ-SAM files.

original_names.py inverts the conversion scripts of transformers 4.44.2. The packages of 4.57.1, which has these two families,
do not contain such scripts, so that the names are listed here. Whether they are right is checked with the authors' code: it
must load the converted files strictly, and give the same results (generate_sam2.py, generate_sam_hq.py, full_size_families.py).
"""

import re

import torch

State = dict[str, torch.Tensor]

# Parts of names that both families have in common: transformers -> original, applied in this order.
SHARED = [
    (r"^shared_image_embedding\.positional_embedding$", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^vision_encoder\.", "image_encoder."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
    (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
    (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
    (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
    (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
    (r"\.upscale_conv1\.", ".output_upscaling.0."),
    (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
    (r"\.upscale_conv2\.", ".output_upscaling.3."),
    # the MLPs with three layers
    (r"(mlps\.\d|_head|hq_mask_mlp)\.layers\.0\.", r"\1.layers.1."),
    (r"(mlps\.\d|_head|hq_mask_mlp)\.proj_in\.", r"\1.layers.0."),
    (r"(mlps\.\d|_head|hq_mask_mlp)\.proj_out\.", r"\1.layers.2."),
]
SAM_HQ = [
    (r"^image_encoder\.layers\.", "image_encoder.blocks."),
    (r"\.neck\.conv1\.", ".neck.0."),
    (r"\.neck\.layer_norm1\.", ".neck.1."),
    (r"\.neck\.conv2\.", ".neck.2."),
    (r"\.neck\.layer_norm2\.", ".neck.3."),
    (r"\.point_embed\.", ".point_embeddings."),
    (r"\.hq_token\.", ".hf_token."),
    (r"\.hq_mask_mlp\.", ".hf_mlp."),
    (r"\.compress_vit_conv1\.", ".compress_vit_feat.0."),
    (r"\.compress_vit_norm\.", ".compress_vit_feat.1."),
    (r"\.compress_vit_conv2\.", ".compress_vit_feat.3."),
    (r"\.encoder_conv1\.", ".embedding_encoder.0."),
    (r"\.encoder_norm\.", ".embedding_encoder.1."),
    (r"\.encoder_conv2\.", ".embedding_encoder.3."),
    (r"\.mask_conv1\.", ".embedding_maskfeature.0."),
    (r"\.mask_norm\.", ".embedding_maskfeature.1."),
    (r"\.mask_conv2\.", ".embedding_maskfeature.3."),
    (r"\.layer_norm", ".norm"),
]
SAM2 = [
    (r"^image_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^image_encoder\.neck\.convs\.(\d)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"\.mlp\.proj_in\.", ".mlp.layers.0."),
    (r"\.mlp\.proj_out\.", ".mlp.layers.1."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.layer_norm", ".norm"),
    (r"^no_memory_embedding$", "no_mem_embed"),
    (r"^(prompt_encoder|mask_decoder)\.", r"sam_\1."),
]
# The table of positions has two names in transformers.
SECOND_NAME = "prompt_encoder.shared_embedding.positional_embedding"


def renamed(name: str, rules: list[tuple[str, str]]) -> str:
    """The original name of a tensor."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def sam_hq_to_original(state: State) -> State:
    """The tensors of a `SamHQModel` under the names of SysCV/sam-hq."""
    return {renamed(name, SHARED + SAM_HQ): tensor for name, tensor in state.items() if name != SECOND_NAME}


def sam2_to_original(state: State) -> State:
    """The tensors of a `Sam2Model` under the names of facebookresearch/sam2, without those of the memory."""
    original = {}
    for name, tensor in state.items():
        if name == "prompt_encoder.point_embed.weight":  # one embedding for each kind of point
            for kind, row in enumerate(tensor):
                original[f"sam_prompt_encoder.point_embeddings.{kind}.weight"] = row[None]
        elif name != SECOND_NAME:
            original[renamed(name, SHARED + SAM2)] = tensor
    return original
