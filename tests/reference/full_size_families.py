"""Generates checkpoints of the newer families in full size with random weights, and compares groundling with their references.

    python tests/reference/full_size_families.py [--out DIR] [--only NAME ...] [--step STEP]

The steps and files are those of full_size.py; the reference is transformers 4.57.1 (requirements-mm.txt) or the authors' code
(requirements-segmenters.txt). Every file with the authors' names is loaded by their code, strictly. For the families that both
have, the image embeddings of both must agree, so that the sizes that no tensor shows (heads, windows) are the published ones.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import nn
from transformers import (
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    Sam2ImageProcessorFast,
    Sam2Model,
    Sam2VideoConfig,
    Sam2VideoModel,
    SamHQConfig,
    SamHQModel,
    SamImageProcessor,
    SwinConfig,
)

from fixtures import write_json
from full_size import (
    BOXES,
    CASES,
    SEED,
    SEGMENTERS,
    Segmenter,
    count_parameters,
    input_size,
    main,
    original_inputs,
    original_preprocess,
    photographs,
    require_complete,
    run_detector,
    run_segmenter,
    save_pretrained,
    save_processor,
    save_torch,
    write_original_only,
    write_photographs,
)
from generate_sam2 import image_predictor, require_memory_only, stability_scores
from generate_sam_hq import hq_features, repair_decoder, sorted_masks
from lively_weights import redraw, temper
from original_family_names import sam2_to_original, sam_hq_to_original

SIDE = 1024
TOLERANCE = 1e-4  # between the image embeddings of transformers and the authors' code, relative to the largest number

# name -> fields of the backbone's configuration that are not the default, and the authors' configuration and file
SAM2 = {
    "sam2.1-hiera-tiny": ({}, "t", "sam2.1_hiera_tiny.pt"),
    "sam2.1-hiera-small": (
        {"blocks_per_stage": [1, 2, 11, 2], "global_attention_blocks": [7, 10, 13]},
        "s",
        "sam2.1_hiera_small.pt",
    ),
    "sam2.1-hiera-base-plus": (
        {
            "hidden_size": 112,
            "num_attention_heads": 2,
            "blocks_per_stage": [2, 3, 16, 3],
            "embed_dim_per_stage": [112, 224, 448, 896],
            "num_attention_heads_per_stage": [2, 4, 8, 16],
            "global_attention_blocks": [12, 16, 20],
            "window_positional_embedding_background_size": [14, 14],
        },
        "b+",
        "sam2.1_hiera_base_plus.pt",
    ),
    "sam2.1-hiera-large": (
        {
            "hidden_size": 144,
            "num_attention_heads": 2,
            "blocks_per_stage": [2, 6, 36, 4],
            "embed_dim_per_stage": [144, 288, 576, 1152],
            "num_attention_heads_per_stage": [2, 4, 8, 16],
            "window_size_per_stage": [8, 4, 16, 8],
            "global_attention_blocks": [23, 33, 43],
        },
        "l",
        "sam2.1_hiera_large.pt",
    ),
}
# Factors of the logits of token 0, of which the one is taken whose choices by stability are the clearest.
SAM2_SCALES = (0.25, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.25, 1.5, 2, 2.5, 3, 4, 6, 8)
STABLE = 0.98  # the decoder's threshold
STABILITY_MARGIN, LEAD_MARGIN = 1e-3, 1e-4

# name -> fields of the vision encoder's configuration, and the authors' name and file
SAM_HQ = {
    "sam-hq-vit-base": (SEGMENTERS["sam-vit-base"], "vit_b", "sam_hq_vit_b.pth"),
    "sam-hq-vit-large": (SEGMENTERS["sam-vit-large"], "vit_l", "sam_hq_vit_l.pth"),
    "sam-hq-vit-huge": (
        {
            "hidden_size": 1280,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "mlp_dim": 5120,
            "global_attn_indexes": [7, 15, 23, 31],
        },
        "vit_h",
        "sam_hq_vit_h.pth",
    ),
}
LIGHT_HQ, LIGHT_HQ_FILE = "light-hq", "sam_hq_vit_tiny.pth"
EFFICIENTVIT_SAM = {f"efficientvit-sam-{size}": f"efficientvit_sam_{size}.pt" for size in "l0 l1 l2 xl0 xl1".split()}

# name -> fields of Swin's configuration, and the number of feature levels
MM_DETECTORS = {
    "mm-grounding-dino-tiny": ({}, 4),
    "mm-grounding-dino-base": (
        {
            "image_size": 384,
            "window_size": 12,
            "embed_dim": 128,
            "depths": [2, 2, 18, 2],
            "num_heads": [4, 8, 16, 32],
        },
        4,
    ),
    "mm-grounding-dino-large": (
        {
            "image_size": 384,
            "window_size": 12,
            "embed_dim": 192,
            "depths": [2, 2, 18, 2],
            "num_heads": [6, 12, 24, 48],
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        5,
    ),
}
# the cases without the batch, for which transformers needs more than 24 GB of memory with this model
SINGLE_CASES = [case for case in CASES if case != "batch"]
CASES_OF = {"mm-grounding-dino-large": SINGLE_CASES}
NAMES = (LIGHT_HQ, *EFFICIENTVIT_SAM, *SAM2, *SAM_HQ, *MM_DETECTORS)


# make


def make(name: str, out: Path) -> None:
    """Writes one checkpoint in all of its formats."""
    torch.set_grad_enabled(False)
    if name in SAM2:
        make_sam2(name, out)
    elif name in SAM_HQ:
        make_sam_hq(name, out)
    elif name in MM_DETECTORS:
        make_mm_detector(name, out)
    elif name == LIGHT_HQ:
        write_original_only(build_light_hq(), out / name, LIGHT_HQ_FILE)
    else:
        model = build_efficientvit_sam(name)
        redraw(model, SEED)
        write_original_only(model, out / name, EFFICIENTVIT_SAM[name])


def make_sam2(name: str, out: Path) -> None:
    """Writes the folder of transformers, which is a video model as the published ones are, and the authors' file."""
    fields, _, file = SAM2[name]
    widths = fields.get("embed_dim_per_stage", [96, 192, 384, 768])
    vision = {"backbone_config": fields, "backbone_channel_list": widths[::-1]}
    video = Sam2VideoModel(Sam2VideoConfig(vision_config=vision))
    redraw(video, SEED)
    save_pretrained(video, out / name)
    Sam2ImageProcessorFast().save_pretrained(out / name)
    scale = clear_scale(out, name)
    for tensor in video.mask_decoder.output_hypernetworks_mlps[0].proj_out.parameters():
        tensor.data *= scale
    save_pretrained(video, out / name)
    model = load_sam2_model(out / name)
    original = build_authors_sam2(name)
    redraw(original, SEED)
    report = original.load_state_dict(sam2_to_original(model.state_dict()), strict=False)
    require_memory_only(report)
    path = out / f"{name}-original" / file
    save_torch({"model": original.state_dict()}, path)
    written = torch.load(path, weights_only=True)["model"]
    original.load_state_dict(written, strict=True)
    print(f"  {len(written)} tensors in {file}; the authors' code loads it, strictly")


def clear_scale(out: Path, name: str) -> float:
    """The factor of token 0's logits with which the boxes' masks are farthest from the threshold of stability.

    If possible, some of the masks are stable, and some are not.
    """
    write_photographs(out)
    model = load_sam2_model(out / name)
    processor = Sam2ImageProcessorFast.from_pretrained(out / name)
    images = photographs(out, "batch")
    encoded = [model.get_image_embeddings(processor(image, return_tensors="pt")["pixel_values"]) for image in images]
    boxes = {"input_boxes": SIDE * torch.tensor([BOXES])}
    parameters = list(model.mask_decoder.output_hypernetworks_mlps[0].proj_out.parameters())
    drawn = [tensor.clone() for tensor in parameters]
    found = []
    for scale in SAM2_SCALES:
        for tensor, value in zip(parameters, drawn):
            tensor.copy_(scale * value)
        scores = [score for features in encoded for score in stability_scores(model, features, boxes)[0]]
        margin = min(abs(score - STABLE) for score in scores)
        both = min(scores) < STABLE < max(scores)
        found.append((margin > 2 * STABILITY_MARGIN and both, margin, scale))
        print(f"  scale {scale}: stability from {min(scores):.4f} to {max(scores):.4f}, margin {margin:.4f}")
    return max(found)[2]


def build_authors_sam2(name: str) -> nn.Module:
    """The authors' model of their own configuration."""
    from sam2.build_sam import build_sam2

    return build_sam2(f"configs/sam2.1/sam2.1_hiera_{SAM2[name][1]}.yaml", device="cpu")


def make_sam_hq(name: str, out: Path) -> None:
    """Writes the folder of transformers, and the authors' file."""
    fields, registered, file = SAM_HQ[name]
    decoder = {"vit_dim": fields.get("hidden_size", 768)}
    model = SamHQModel(SamHQConfig(vision_config=fields, mask_decoder_config=decoder))
    redraw(model, SEED)
    folder = out / name
    save_pretrained(model, folder)
    write_json(folder / "config.json", json.loads(model.config.to_json_string(use_diff=False)))
    SamImageProcessor().save_pretrained(folder)
    path = out / f"{name}-original" / file
    save_torch(sam_hq_to_original(model.state_dict()), path)
    print(f"  {len(load_authors_sam_hq(registered, path).state_dict())} tensors; the authors' code loads it, strictly")


def load_authors_sam_hq(registered: str, path: Path) -> nn.Module:
    """The authors' model with the weights of a file."""
    from segment_anything_hq import sam_model_registry

    with torch.device("meta"):  # without initial weights: the file has all of them
        model = sam_model_registry[registered]()
    model.load_state_dict(torch.load(path, weights_only=True), strict=True, assign=True)
    return model


def build_light_hq() -> nn.Module:
    """The authors' Light HQ-SAM with random weights."""
    from segment_anything_hq.build_sam import build_sam_vit_t

    model = build_sam_vit_t()
    redraw(model, SEED)
    return model.eval()


def build_efficientvit_sam(name: str) -> nn.Module:
    """The authors' model without weights."""
    from efficientsam.sam_model_zoo import create_efficientvit_sam_model

    return create_efficientvit_sam_model(name, pretrained=False).eval()


def make_mm_detector(name: str, out: Path) -> None:
    """Writes the folder of transformers."""
    fields, levels = MM_DETECTORS[name]
    tiny = {
        "image_size": 224,
        "window_size": 7,
        "embed_dim": 96,
        "depths": [2, 2, 6, 2],
        "num_heads": [3, 6, 12, 24],
        "out_features": ["stage2", "stage3", "stage4"],
    }
    config = MMGroundingDinoConfig(backbone_config=SwinConfig(**(tiny | fields)), num_feature_levels=levels)
    model = MMGroundingDinoForObjectDetection(config)
    redraw(model, SEED)
    temper(model, norm_scale=1)
    save_pretrained(model, out / name)
    save_processor(out / name)


# reference


def run(name: str, out: Path) -> Iterator:
    """The results of one model: see `run_detector` and `run_segmenter` of full_size.py."""
    torch.set_num_threads(2)
    if name in MM_DETECTORS:
        return run_detector(MMGroundingDinoForObjectDetection, name, out, CASES_OF.get(name, CASES))
    if name in SAM2:
        segmenter = load_sam2(name, out)
    elif name in SAM_HQ:
        segmenter = load_sam_hq(name, out)
    elif name == LIGHT_HQ:
        segmenter = load_light_hq(out / name)
    else:
        segmenter = load_efficientvit_sam(name, out / name)
    return run_segmenter(segmenter, out)


def require_similar(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Prints the largest difference relative to the largest number, and refuses one above the tolerance."""
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    print(f"  {what}: transformers and the authors' code differ by {difference:.1e} of the largest number")
    if not difference < TOLERANCE:
        raise ValueError(f"{what}: the authors' code gives other numbers")


def load_sam2_model(folder: Path) -> Sam2Model:
    """transformers' image model with the weights of a video model, whose other tensors it ignores."""
    model, loading = Sam2Model.from_pretrained(folder, output_loading_info=True)
    require_complete(loading)
    return model.eval()


def load_sam2(name: str, out: Path) -> Segmenter:
    """transformers' SAM 2."""
    model = load_sam2_model(out / name)
    processor = Sam2ImageProcessorFast.from_pretrained(out / name)

    def preprocess(image: Image.Image) -> torch.Tensor:
        return processor(image, return_tensors="pt")["pixel_values"]

    def encode(pixels: torch.Tensor) -> tuple[list, dict]:
        features = model.get_image_embeddings(pixels)
        return features, dict(zip(("high_res.0", "high_res.1", "image_embeddings"), features))

    def predict(features, multimask, boxes=None, points=None, labels=None):
        prompts = {"input_boxes": boxes, "input_points": points, "input_labels": labels}
        prompts = {key: tensor for key, tensor in prompts.items() if tensor is not None}
        if not multimask:
            require_clear_choice(*stability_scores(model, features, prompts))
        output = model(image_embeddings=features, multimask_output=multimask, **prompts)
        return {
            "low_res_masks": output.pred_masks,
            "iou_scores": output.iou_scores,
            "object_score_logits": output.object_score_logits,
        }

    original = build_authors_sam2(name)
    path = out / f"{name}-original" / SAM2[name][2]
    original.load_state_dict(torch.load(path, weights_only=True)["model"], strict=True)
    image = photographs(out, "single-0")[0]
    predictor = image_predictor(original, image, preprocess(image))
    theirs = [*predictor._features["high_res_feats"], predictor._features["image_embed"]]
    for key, ours, other in zip(("high_res.0", "high_res.1", "image_embeddings"), encode(preprocess(image))[0], theirs):
        require_similar(key, ours, other)
    return Segmenter(count_parameters(model), preprocess, lambda _image: (SIDE, SIDE), encode, predict)


def require_clear_choice(stability: list[float], leads: list[float]) -> None:
    """Checks that the choices between token 0 and the others do not depend on rounding."""
    print(f"  stability {[round(score, 4) for score in stability]}, leads {[round(lead, 4) for lead in leads]}")
    if min(abs(score - STABLE) for score in stability) < STABILITY_MARGIN or min(leads) < LEAD_MARGIN:
        raise ValueError("a choice between masks is ambiguous: choose another seed")


def require_clear_order(scores: torch.Tensor) -> None:
    """Checks that the order of masks (1 N M, by descending score) does not depend on rounding."""
    lead = -scores.diff().max().item()
    if lead < LEAD_MARGIN:
        raise ValueError(f"the order of the masks is ambiguous, scores differ by {lead:.1e}: choose another seed")


def load_sam_hq(name: str, out: Path) -> Segmenter:
    """transformers' HQ-SAM, with the repaired decoder."""
    folder = out / name
    model, loading = SamHQModel.from_pretrained(folder, output_loading_info=True)
    require_complete(loading)
    model.eval()
    repair_decoder(model.mask_decoder)
    processor = SamImageProcessor.from_pretrained(folder)
    _, registered, file = SAM_HQ[name]
    original = load_authors_sam_hq(registered, out / f"{name}-original" / file)

    def preprocess(image: Image.Image) -> torch.Tensor:
        return processor(image, return_tensors="pt")["pixel_values"]

    def encode(pixels: torch.Tensor) -> tuple[tuple, dict]:
        embeddings, early = model.get_image_embeddings(pixels)
        features = hq_features(original.mask_decoder, embeddings, early)
        return (embeddings, early), {"image_embeddings": embeddings, "hq_features": features}

    def predict(encoded, multimask, boxes=None, points=None, labels=None):
        embeddings, early = encoded
        output = model(
            image_embeddings=embeddings,
            intermediate_embeddings=early,
            input_boxes=boxes,
            input_points=points,
            input_labels=labels,
            multimask_output=multimask,
        )
        if multimask:
            require_clear_order(output.iou_scores)
        return {"low_res_masks": output.pred_masks, "iou_scores": output.iou_scores}

    pixels = preprocess(photographs(out, "single-0")[0])
    (embeddings, early), _ = encode(pixels)
    theirs, their_early = original.image_encoder(pixels)
    require_similar("image_embeddings", embeddings, theirs)
    require_similar("early features", early[0], their_early[0])
    return Segmenter(count_parameters(model), preprocess, input_size, encode, predict)


def load_light_hq(folder: Path) -> Segmenter:
    """The authors' Light HQ-SAM, with all three masks as transformers gives them for HQ-SAM."""
    model = build_light_hq()
    model.load_state_dict(torch.load(folder / LIGHT_HQ_FILE, weights_only=True), strict=True)
    model.eval()  # copies the attention biases into tables, which loading does not change

    def encode(pixels: torch.Tensor) -> tuple[tuple, dict]:
        embeddings, early = model.image_encoder(pixels)
        features = hq_features(model.mask_decoder, embeddings, early)
        return (embeddings, early), {"image_embeddings": embeddings, "hq_features": features}

    def predict(encoded, multimask, boxes=None, points=None, labels=None):
        embeddings, early = encoded
        inputs = original_inputs(model, embeddings, boxes, points, labels) | {"interm_embeddings": early}
        if multimask:
            masks, scores = sorted_masks(model.mask_decoder, inputs)
            require_clear_order(scores)
        else:
            masks, scores = model.mask_decoder(**inputs, multimask_output=False, hq_token_only=False)
        return {"low_res_masks": masks[None], "iou_scores": scores[None]}

    return Segmenter(
        parameters=count_parameters(model),
        preprocess=lambda image: original_preprocess(model, image),
        input_size=input_size,
        encode=encode,
        predict=predict,
    )


def load_efficientvit_sam(name: str, folder: Path) -> Segmenter:
    """The authors' EfficientViT-SAM."""
    model = build_efficientvit_sam(name)
    model.load_state_dict(torch.load(folder / EFFICIENTVIT_SAM[name], weights_only=True), strict=True)

    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, dict]:
        embeddings = model.image_encoder(pixels)
        return embeddings, {"image_embeddings": embeddings}

    def predict(embeddings, multimask, boxes=None, points=None, labels=None):
        inputs = original_inputs(model, embeddings, boxes, points, labels)
        masks, scores = model.mask_decoder(**inputs, multimask_output=multimask)
        return {"low_res_masks": masks[None], "iou_scores": scores[None]}

    return Segmenter(
        parameters=count_parameters(model),
        preprocess=lambda image: model.transform(numpy.asarray(image))[None],
        input_size=input_size,
        encode=encode,
        predict=predict,
    )


if __name__ == "__main__":
    main(NAMES, __doc__, make, run)
