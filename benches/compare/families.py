"""The newer families with random weights: checkpoints in a published format, and the modules that torch runs.

The configurations and builders are those of tests/reference/full_size_families.py. SAM 2.1, HQ-SAM and MM Grounding
DINO are those of transformers; Light HQ-SAM and EfficientViT-SAM only exist in their authors' code.
"""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import (
    MMGroundingDinoForObjectDetection,
    Sam2ImageProcessorFast,
    Sam2Model,
    Sam2VideoConfig,
    Sam2VideoModel,
    SamHQConfig,
    SamHQModel,
    SamImageProcessor,
)

from inputs import resized
from sizes import IMAGE_SIZE, SEGMENTER_SIDE
from works import HQ_MASKS, LIGHT_HQ_SAM

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "reference"))

import full_size_families as published  # noqa: E402
from generate_sam_hq import hq_features  # noqa: E402
from lively_weights import redraw  # noqa: E402

SEED = 0


# checkpoints


def save(name: str, target: Path) -> None:
    """Writes the files of one checkpoint to the folder `target`."""
    if name in published.MM_DETECTORS:
        # it writes a folder with the name of the model
        published.make_mm_detector(name, target)
        for file in (target / name).iterdir():
            file.rename(target / file.name)
        (target / name).rmdir()
    elif name in published.SAM2:
        save_sam2(name, target)
    elif name in published.SAM_HQ:
        save_sam_hq(name, target)
    else:
        model, file = authors_model(name)
        redraw(model, SEED)
        torch.save(model.state_dict(), target / file)


def save_sam2(name: str, target: Path) -> None:
    """Writes the folder of transformers, which is a video model as the published ones are."""
    fields, _, _ = published.SAM2[name]
    widths = fields.get("embed_dim_per_stage", [96, 192, 384, 768])
    vision = {"backbone_config": fields, "backbone_channel_list": widths[::-1]}
    model = Sam2VideoModel(Sam2VideoConfig(vision_config=vision))
    redraw(model, SEED)
    model.save_pretrained(target)
    Sam2ImageProcessorFast().save_pretrained(target)


def save_sam_hq(name: str, target: Path) -> None:
    """Writes the folder of transformers."""
    fields, _, _ = published.SAM_HQ[name]
    decoder = {"vit_dim": fields.get("hidden_size", 768)}
    model = SamHQModel(SamHQConfig(vision_config=fields, mask_decoder_config=decoder))
    redraw(model, SEED)
    model.save_pretrained(target)
    # as in the published file: with every field
    config = json.loads(model.config.to_json_string(use_diff=False))
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    SamImageProcessor().save_pretrained(target)


def authors_model(name: str) -> tuple[nn.Module, str]:
    """A model that only its authors' code has, and the name of its file."""
    with warnings.catch_warnings():
        # timm warns that it has moved modules that TinyViT imports
        warnings.simplefilter("ignore")
        if name == LIGHT_HQ_SAM:
            return published.build_light_hq(), published.LIGHT_HQ_FILE
        return published.build_efficientvit_sam(name), published.EFFICIENTVIT_SAM[name]


def load(name: str, folder: Path) -> nn.Module:
    """Loads a model from its checkpoint in `folder`, for inference in float32."""
    for names, kind in (
        (published.MM_DETECTORS, MMGroundingDinoForObjectDetection),
        (published.SAM2, Sam2Model),
        (published.SAM_HQ, SamHQModel),
    ):
        if name in names:
            return kind.from_pretrained(folder / name, dtype=torch.float32).eval()
    model, file = authors_model(name)
    model.load_state_dict(torch.load(folder / name / file, weights_only=True))
    # TinyViT computes its tables of attention biases when it changes to inference
    return model.train().eval()


# modules


class Sam2Encoder(nn.Module):
    """SAM 2's three maps: `conv_s0` and `conv_s1` of the two fine ones, and the image embeddings."""

    def __init__(self, model: Sam2Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return tuple(self.model.get_image_embeddings(pixel_values))


class SamHQEncoder(nn.Module):
    """The image encoder of transformers' HQ-SAM, and the part of its decoder that does not depend on prompts."""

    def __init__(self, model: SamHQModel) -> None:
        super().__init__()
        self.encoder, self.decoder = model.vision_encoder, model.mask_decoder

    def forward(self, pixel_values):
        output = self.encoder(pixel_values)
        embeddings, early = output.last_hidden_state, output.intermediate_embeddings[0]
        decoder, activation = self.decoder, self.decoder.activation
        late = decoder.encoder_conv2(activation(decoder.encoder_norm(decoder.encoder_conv1(embeddings))))
        early = decoder.compress_vit_conv1(early.permute(0, 3, 1, 2).contiguous())
        early = decoder.compress_vit_conv2(activation(decoder.compress_vit_norm(early)))
        return embeddings, late + early


class LightHQEncoder(nn.Module):
    """The same of the authors' Light HQ-SAM."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = model.image_encoder, model.mask_decoder

    def forward(self, pixel_values):
        embeddings, early = self.encoder(pixel_values)
        return embeddings, hq_features(self.decoder, embeddings, early)


class HQMasks(nn.Module):
    """From boxes to masks of the image's size with the authors' HQ-SAM, whose HQ features were computed before."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.prompt_encoder, self.decoder = model.prompt_encoder, model.mask_decoder

    def forward(self, image_embeddings, hq_features, input_boxes):
        sparse, dense = self.prompt_encoder(points=None, boxes=input_boxes[0], masks=None)
        masks, scores = self.decoder.predict_masks(
            image_embeddings=image_embeddings,
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            hq_features=hq_features,
        )
        height, width = resized(IMAGE_SIZE)
        masks = masks[:, :1] + masks[:, -1:]
        masks = nn.functional.interpolate(masks, (SEGMENTER_SIDE, SEGMENTER_SIDE), mode="bilinear")
        masks = nn.functional.interpolate(masks[..., :height, :width], IMAGE_SIZE, mode="bilinear")
        return masks > 0, scores[:, :1]


def module(work: str, models: Path) -> tuple[nn.Module, list[str]]:
    """The module of a segmenter's work item, with positional arguments, and the names of its results."""
    if work == HQ_MASKS:
        return HQMasks(load(LIGHT_HQ_SAM, models)), ["masks", "iou_scores"]
    model = load(work, models)
    if work in published.SAM2:
        return Sam2Encoder(model), ["high_res_0", "high_res_1", "image_embeddings"]
    kinds: dict[str, Callable] = {LIGHT_HQ_SAM: LightHQEncoder} | dict.fromkeys(published.SAM_HQ, SamHQEncoder)
    if work in kinds:
        return kinds[work](model), ["image_embeddings", "hq_features"]
    return model.image_encoder, ["image_embeddings"]
