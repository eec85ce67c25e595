"""Generates tiny SAM models with random weights, and the results of the reference with them.

For each model it writes config.json, preprocessor_config.json, model.safetensors, image.safetensors (from pixels to image
embeddings) and one file per case (from prompts to masks). post_processing.safetensors needs no model (from low-resolution
masks to the original size). README.md lists the tensors.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

from fixtures import HERE, Recorder, run_exactly, write_json, write_tensors
from lively_weights import redraw, save_weights
from pictures import picture

OUT = HERE / "segmenter"

# config.json has every field. The window does not divide the 8 x 8 grid.
PLAIN = {
    "vision_config": {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "mlp_dim": 48,
        "image_size": 64,
        "patch_size": 8,
        "window_size": 3,
        "global_attn_indexes": [1, 3],
        "output_channels": 32,
        "num_pos_feats": 16,
    },
    "prompt_encoder_config": {"hidden_size": 32, "image_size": 64, "patch_size": 8, "mask_input_channels": 8},
    "mask_decoder_config": {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "mlp_dim": 48,
        "iou_head_hidden_dim": 32,
        "iou_head_depth": 3,
    },
}

# Has other values wherever the configuration allows. config.json has only these fields; all others are defaults.
VARIED = {
    "model_type": "sam",
    "architectures": ["SamModel"],
    "vision_config": {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 96,
        "window_size": 4,
        "global_attn_indexes": [1],
        "output_channels": 24,
        "num_pos_feats": 12,
        "mlp_dim": 40,
        "qkv_bias": False,
        "layer_norm_eps": 0.001,
    },
    "prompt_encoder_config": {"hidden_size": 24, "image_size": 96, "mask_input_channels": 12, "layer_norm_eps": 0.002},
    "mask_decoder_config": {
        "hidden_size": 24,
        "hidden_act": "gelu",
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "attention_downsample_rate": 1,
        "mlp_dim": 40,
        "iou_head_depth": 2,
        "iou_head_hidden_dim": 20,
        "layer_norm_eps": 0.005,
    },
}

# model -> fields, (height, width) of the original image
MODELS = {"plain": (PLAIN, (29, 45)), "varied": (VARIED, (47, 32))}

# Prompts as fractions of the image's width and height; with `mask`, an earlier mask is a prompt too.
BOX = [0.21, 0.13, 0.78, 0.86]
CASES = {
    "box": {"boxes": [BOX], "multimask": False},
    "box_multimask": {"boxes": [BOX], "multimask": True},
    "boxes": {
        "boxes": [BOX, [0, 0, 1, 1], [0.4, 0.3, 0.55, 0.49], [0.05, 0.6, 0.3, 0.97], [0.6, 0.02, 0.98, 0.4]],
        "multimask": False,
    },
    "points": {"points": [[[0.31, 0.42], [0.68, 0.71], [0.12, 0.9]]], "labels": [[1, 1, 0]], "multimask": True},
    "objects": {
        "points": [[[0.31, 0.42], [0.9, 0.2]], [[0.72, 0.55], [0.1, 0.77]]],
        "labels": [[1, 0], [1, 1]],
        "multimask": True,
    },
    "points_box": {"points": [[[0.5, 0.4], [0.25, 0.8]]], "labels": [[1, 0]], "boxes": [BOX], "multimask": False},
    "mask_box": {"boxes": [BOX], "mask": True, "multimask": False},
    "mask_points": {"points": [[[0.31, 0.42]]], "labels": [[1]], "mask": True, "multimask": False},
}
SHORT = ("box_multimask", "boxes", "objects")  # the largest tensors of these cases are not written


def build_model(fields: dict, seed: int) -> SamModel:
    """The model in float32, with random values in every tensor."""
    config = SamConfig(**copy.deepcopy(fields))
    config._attn_implementation = "eager"
    model = SamModel(config)
    redraw(model, seed)
    return model.eval()


def write_model(name: str, fields: dict, model: SamModel, image_processor: SamImageProcessor) -> None:
    """Writes config.json, preprocessor_config.json and model.safetensors in the published format."""
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    if name == "plain":
        model.config.architectures = [type(model).__name__]
        write_json(folder / "config.json", json.loads(model.config.to_json_string(use_diff=False)))
        write_json(folder / "preprocessor_config.json", json.loads(image_processor.to_json_string()))
    else:
        write_json(folder / "config.json", fields)
        sizes = {"size": image_processor.size, "pad_size": image_processor.pad_size}
        write_json(folder / "preprocessor_config.json", sizes)
    save_weights(model, folder / "model.safetensors", drop=("prompt_encoder.shared_embedding",))


def build_image_processor(side: int) -> SamImageProcessor:
    """The reference's preprocessing for a square model input of `side` pixels."""
    return SamImageProcessor(size={"longest_edge": side}, pad_size={"height": side, "width": side})


def write_image(name: str, model: SamModel, inputs: dict) -> torch.Tensor:
    """Writes the stages from pixels to image embeddings, layer by layer. Returns the embeddings."""
    recorder = Recorder()
    recorder.before_call(
        model.vision_encoder.layers[0], lambda inputs, _keywords: recorder.keep("vision.patch_embed", inputs[0])
    )
    for index, layer in enumerate(model.vision_encoder.layers):
        recorder.output(layer, f"vision.layer.{index}")
    embeddings = model.get_image_embeddings(inputs["pixel_values"])
    tensors = recorder.tensors | {
        "pixel_values": inputs["pixel_values"].half(),
        "original_size": inputs["original_sizes"][0],
        "reshaped_input_size": inputs["reshaped_input_sizes"][0],
        "image_embeddings": embeddings,
        "image_wide_positional_embeddings": model.get_image_wide_positional_embeddings(),
    }
    write_tensors(OUT / name / "image.safetensors", tensors)
    return embeddings


def earlier_mask(side: int) -> torch.Tensor:
    """The logits of a smooth low-resolution mask, as of an earlier prediction."""
    coarse = 6 * torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(5))
    return interpolate(coarse, size=(side, side), mode="bilinear")


def prompts_of(case: dict, processor: SamProcessor, image: Image.Image, mask_side: int) -> tuple[dict, dict, dict]:
    """The sizes of the image, and the prompts of the case in pixels of the original and of the model's input."""
    width, height = image.size
    pixels = {}
    if "boxes" in case:
        scale = (width, height, width, height)
        pixels["input_boxes"] = [[[edge * size for edge, size in zip(box, scale)] for box in case["boxes"]]]
    if "points" in case:
        pixels["input_points"] = [[[[x * width, y * height] for x, y in points] for points in case["points"]]]
        pixels["input_labels"] = [case["labels"]]
    encoded = processor(image, return_tensors="pt", **pixels)
    sizes = {name: encoded[name] for name in ("original_sizes", "reshaped_input_sizes")}
    prompts = {name: encoded[name] if name == "input_labels" else encoded[name].float() for name in pixels}
    if case.get("mask"):
        prompts["input_masks"] = earlier_mask(mask_side)
    originals = {f"original_{name}": torch.tensor(value) for name, value in pixels.items() if name != "input_labels"}
    return sizes, originals, prompts


def write_case(
    folder: Path, case_name: str, model: SamModel, processor: SamProcessor, image: Image.Image, embeddings: torch.Tensor
) -> None:
    """Writes the stages from prompts to masks at the original size."""
    case = CASES[case_name]
    mask_side = 4 * model.prompt_encoder.image_embedding_size[0]
    sizes, originals, prompts = prompts_of(case, processor, image, mask_side)
    recorder = Recorder()

    def keep_prompt(_inputs, _keywords, output):
        recorder.keep("sparse_embeddings", output[0])
        recorder.keep("dense_embeddings", output[1])

    def keep_transformer(_inputs, _keywords, output):
        recorder.keep("decoder.tokens_out", output[0])
        recorder.keep("decoder.image_out", output[1])

    hooks = [
        recorder.on_call(model.prompt_encoder, keep_prompt),
        recorder.on_call(model.mask_decoder.transformer, keep_transformer),
    ]
    output = model(image_embeddings=embeddings, multimask_output=case["multimask"], **prompts)
    for hook in hooks:
        hook.remove()
    tensors = recorder.tensors | originals | prompts | {
        "original_size": sizes["original_sizes"][0],
        "reshaped_input_size": sizes["reshaped_input_sizes"][0],
        "low_res_masks": output.pred_masks,
        "iou_scores": output.iou_scores,
        "final_masks": processor.post_process_masks(output.pred_masks, **sizes)[0],
        "final_logits": processor.post_process_masks(output.pred_masks, binarize=False, **sizes)[0],
    }
    if not case.get("mask") and case_name != "box":
        del tensors["dense_embeddings"]  # the same vector everywhere, as in `box`
    if case_name in SHORT:
        del tensors["decoder.image_out"], tensors["final_logits"]
    write_tensors(folder / f"{case_name}.safetensors", tensors, multimask_output=case["multimask"])


def write_post_processing() -> None:
    """Writes low-resolution masks upscaled to originals that are larger and smaller than the model's input."""
    side = 128
    processor = build_image_processor(side)
    tensors = {}
    for seed, (name, size) in enumerate({"larger": (151, 31), "smaller": (47, 61)}.items()):
        reshaped = processor._get_preprocess_shape(size, side)
        coarse = 6 * torch.randn(1, 2, 9, 9, generator=torch.Generator().manual_seed(seed))
        grain = 0.5 * torch.randn(1, 2, side // 4, side // 4, generator=torch.Generator().manual_seed(seed + 10))
        masks = interpolate(coarse, size=(side // 4, side // 4), mode="bilinear") + grain
        logits = processor.post_process_masks([masks], [size], [reshaped], binarize=False)[0]
        tensors |= {
            f"{name}.low_res_masks": masks,
            f"{name}.original_size": torch.tensor(size),
            f"{name}.reshaped_input_size": torch.tensor(reshaped),
            f"{name}.final_masks": processor.post_process_masks([masks], [size], [reshaped])[0],
            f"{name}.final_logits": logits[:, :1],
        }
    write_tensors(OUT / "post_processing.safetensors", tensors, input_side=side)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    run_exactly()
    for seed, (name, (fields, size)) in enumerate(MODELS.items()):
        model = build_model(fields, seed)
        image_processor = build_image_processor(fields["vision_config"]["image_size"])
        processor = SamProcessor(image_processor)
        write_model(name, fields, model, image_processor)
        image = picture(seed, *size)
        inputs = dict(image_processor(image, return_tensors="pt"))
        inputs["pixel_values"] = inputs["pixel_values"].half().float()
        embeddings = write_image(name, model, inputs)
        for case_name in CASES:
            write_case(OUT / name, case_name, model, processor, image, embeddings)
    write_post_processing()


if __name__ == "__main__":
    main()
