"""Generates tiny HQ-SAM models with random weights, and the results of their references with them.

segmenter/sam_hq/: the family with SAM's image encoder. The reference is transformers 4.57.1 (requirements-mm.txt) with a
repaired decoder; original.pth has the names of the authors, whose code (requirements-segmenters.txt) must give the same results.
segmenter/light_hq/: Light HQ-SAM with TinyViT, which only the authors' code has. README.md lists the tensors.
"""

import argparse
import copy
from pathlib import Path

import torch
import transformers
from PIL import Image
from torch import nn
from transformers import SamHQConfig, SamHQModel, SamHQProcessor, SamImageProcessor

from fixtures import HERE, Recorder, run_exactly, write_json, write_tensors
from generate_segmenter import CASES, PLAIN
from lively_weights import redraw
from original_family_names import sam_hq_to_original
from pictures import picture
from segmenter_cases import (
    Tensors,
    check_prompts,
    halved,
    longest_edge,
    require_close,
    require_lively,
    write_cases,
)

OUT = HERE / "segmenter"
MARGIN = 1e-3  # between the scores by which masks are sorted
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]

# The early features are those of layer 1: two layers have global attention, so that taking the last one would be noticed.
SAM_HQ = PLAIN | {
    "mask_decoder_config": PLAIN["mask_decoder_config"] | {"vit_dim": PLAIN["vision_config"]["hidden_size"]}
}
SAM_HQ_SIZE = (29, 45)

# The maps have 16, 8, 8 and 8 rows after their stages. Windows 5 and 6 do not divide theirs.
TINY_VIT = {
    "image_size": 128,
    "embed_dims": [8, 16, 24, 32],
    "depths": [1, 2, 2, 1],
    "num_heads": [1, 2, 3, 4],
    "window_sizes": [5, 5, 6, 3],
}
LIGHT_HQ = {
    "model_type": "sam_hq",
    "vision_config": {"model_type": "tiny_vit", **TINY_VIT, "output_channels": 32},
    "prompt_encoder_config": {"hidden_size": 32, "image_size": 128, "patch_size": 16, "mask_input_channels": 8},
    "mask_decoder_config": SAM_HQ["mask_decoder_config"] | {"vit_dim": TINY_VIT["embed_dims"][2]},
}
LIGHT_HQ_SIZE = (53, 37)


def decoder_inputs(model: nn.Module, encoded: tuple, prompts: Tensors) -> dict:
    """The arguments of the authors' mask decoder for an encoded image and prompts."""
    embeddings, early = encoded
    points = (prompts["input_points"][0], prompts["input_labels"][0]) if "input_points" in prompts else None
    boxes = prompts["input_boxes"][0] if "input_boxes" in prompts else None
    sparse, dense = model.prompt_encoder(points=points, boxes=boxes, masks=prompts.get("input_masks"))
    return {
        "image_embeddings": embeddings,
        "image_pe": model.prompt_encoder.get_dense_pe(),
        "sparse_prompt_embeddings": sparse,
        "dense_prompt_embeddings": dense,
        "interm_embeddings": early,
    }


def hq_features(decoder: nn.Module, embeddings: torch.Tensor, early: list[torch.Tensor]) -> torch.Tensor:
    """The features that the authors' decoder adds to the upscaled image: 1 C/8 4h 4w."""
    return decoder.embedding_encoder(embeddings) + decoder.compress_vit_feat(early[0].permute(0, 3, 1, 2))


def sorted_masks(decoder: nn.Module, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """All three masks of the authors' decoder in descending order of their scores, as transformers gives them.

    The decoder itself returns only the first of them.
    """
    features = hq_features(decoder, inputs["image_embeddings"], inputs["interm_embeddings"])
    shared = {name: tensor for name, tensor in inputs.items() if name != "interm_embeddings"}
    masks, scores = decoder.predict_masks(**shared, hq_features=features)
    scores, order = scores[:, 1:].sort(descending=True)
    chosen = masks[:, 1:-1].gather(1, order[:, :, None, None].expand_as(masks[:, 1:-1]))
    return chosen + masks[:, -1:], scores


def compare_with_authors(model: nn.Module, encoded: tuple, cases: dict[str, Tensors]) -> None:
    """Checks all cases with the authors' code, which returns only the best of several masks."""
    for name, case in cases.items():
        multimask = CASES[name]["multimask"]
        inputs = decoder_inputs(model, encoded, {key: case[key] for key in case if key.startswith("input_")})
        masks, scores = model.mask_decoder(**inputs, multimask_output=multimask, hq_token_only=False)
        require_close(f"{name}, low_res_masks", case["low_res_masks"][0, :, :1], masks)
        require_close(f"{name}, iou_scores", case["iou_scores"][0, :, :1], scores)
        if multimask:
            masks, scores = sorted_masks(model.mask_decoder, inputs)
            require_close(f"{name}, all masks", case["low_res_masks"][0], masks)
            require_close(f"{name}, all scores", case["iou_scores"][0], scores)
            lead = -scores.diff().max().item()
            if lead < MARGIN:
                raise ValueError(f"{name}: two scores differ by {lead:.1e}, so that their order is ambiguous")


def original_sizes(fields: dict) -> dict:
    """The arguments of the authors' prompt encoder and decoder for the fields of a configuration."""
    prompt, decoder = fields["prompt_encoder_config"], fields["mask_decoder_config"]
    grid = prompt["image_size"] // prompt["patch_size"]
    return {
        "prompt_encoder": {
            "embed_dim": prompt["hidden_size"],
            "image_embedding_size": (grid, grid),
            "input_image_size": (prompt["image_size"],) * 2,
            "mask_in_chans": prompt["mask_input_channels"],
        },
        "transformer": {
            "depth": 2,
            "embedding_dim": decoder["hidden_size"],
            "num_heads": decoder["num_attention_heads"],
            "mlp_dim": decoder["mlp_dim"],
        },
        "mask_decoder": {
            "transformer_dim": decoder["hidden_size"],
            "iou_head_depth": decoder["iou_head_depth"],
            "iou_head_hidden_dim": decoder["iou_head_hidden_dim"],
            "vit_dim": decoder["vit_dim"],
        },
    }


def build_original(image_encoder: nn.Module, fields: dict) -> nn.Module:
    """The authors' model with an image encoder and the sizes of a configuration."""
    from segment_anything_hq.modeling import MaskDecoderHQ, PromptEncoder, Sam, TwoWayTransformer

    sizes = original_sizes(fields)
    decoder = MaskDecoderHQ(transformer=TwoWayTransformer(**sizes["transformer"]), **sizes["mask_decoder"])
    return Sam(image_encoder, PromptEncoder(**sizes["prompt_encoder"]), decoder, pixel_mean=MEAN, pixel_std=STD).eval()


# HQ-SAM


def build_model(seed: int) -> SamHQModel:
    """The model in float32, with random values in every tensor."""
    model = SamHQModel._from_config(SamHQConfig(**copy.deepcopy(SAM_HQ)), attn_implementation="eager")
    redraw(model, seed)
    return model.eval()


def repair_decoder(decoder: nn.Module) -> None:
    """Lets the decoder upscale the image that the two-way transformer returns, as the authors' code does.

    In transformers 4.57.1, `SamHQMaskDecoder.forward` assigns that image to `iou_token_out`, and upscales the transposed image
    embeddings instead. Published weights were not trained for this, and the authors' code is the reference.
    """
    images = []
    decoder.transformer.register_forward_hook(lambda _module, _inputs, output: images.append(output[1]))
    decoder.upscale_conv1.register_forward_pre_hook(
        lambda _module, inputs: images.pop().transpose(2, 3).reshape(inputs[0].shape)
    )


def write_model(folder: Path, model: SamHQModel, image_processor: SamImageProcessor) -> None:
    """Writes the checkpoint with `save_pretrained`, and checks that loading it gives the same tensors."""
    copy.deepcopy(model).half().save_pretrained(folder)
    image_processor.save_pretrained(folder)
    for file in folder.glob("*"):
        file.chmod(0o644)
    loaded, report = SamHQModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    found = loaded.state_dict()
    different = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, found[name])]
    if any(report.values()) or different:
        raise RuntimeError(f"the saved model cannot be loaded completely: {report}, {different}")


def write_original(folder: Path, model: SamHQModel) -> nn.Module:
    """Writes original.pth, and returns the authors' model with the tensors of the file."""
    from segment_anything_hq.modeling import ImageEncoderViT

    vision = SAM_HQ["vision_config"]
    encoder = ImageEncoderViT(
        img_size=vision["image_size"],
        patch_size=vision["patch_size"],
        embed_dim=vision["hidden_size"],
        depth=vision["num_hidden_layers"],
        num_heads=vision["num_attention_heads"],
        mlp_ratio=vision["mlp_dim"] / vision["hidden_size"],
        out_chans=vision["output_channels"],
        qkv_bias=True,
        norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
        use_rel_pos=True,
        window_size=vision["window_size"],
        global_attn_indexes=vision["global_attn_indexes"],
    )
    torch.save(halved(sam_hq_to_original(model.state_dict())), folder / "original.pth")
    original = build_original(encoder, SAM_HQ)
    stored = torch.load(folder / "original.pth", weights_only=True)
    original.load_state_dict(stored, strict=True)
    print(f"original.pth: {len(stored)} tensors")
    return original


def sam_hq() -> None:
    """Writes segmenter/sam_hq/."""
    folder = OUT / "sam_hq"
    folder.mkdir(parents=True, exist_ok=True)
    side = SAM_HQ["vision_config"]["image_size"]
    image_processor = SamImageProcessor(
        size={"longest_edge": side},
        pad_size={"height": side, "width": side},
        mask_size={"longest_edge": side // 4},
        mask_pad_size={"height": side // 4, "width": side // 4},
    )
    processor = SamHQProcessor(image_processor)
    image = picture(0, *SAM_HQ_SIZE)
    model = build_model(seed=3)
    require_lively(model.state_dict())
    write_model(folder, model, image_processor)
    repair_decoder(model.mask_decoder)
    inputs = image_processor(image, return_tensors="pt")
    pixels = inputs["pixel_values"].half().float()
    target = tuple(inputs["reshaped_input_sizes"][0].tolist())
    if target != longest_edge(SAM_HQ_SIZE, side):
        raise RuntimeError(f"the processor resizes to {target}")

    recorder = Recorder()
    layers = model.vision_encoder.layers
    recorder.before_call(layers[0], lambda inputs, _keywords: recorder.keep("vision.patch_embed", inputs[0]))
    for index, layer in enumerate(layers):
        recorder.output(layer, f"vision.layer.{index}")
    embeddings, early = model.get_image_embeddings(pixels)
    decoder = model.mask_decoder
    parts = Recorder()
    hooks = [
        parts.on_call(module, lambda _inputs, _keywords, output, key=key: parts.keep(key, output))
        for key, module in (("image", decoder.encoder_conv2), ("early", decoder.compress_vit_conv2))
    ]
    box = torch.tensor([[[3.0, 5.0, 40.0, 50.0]]])
    model(image_embeddings=embeddings, intermediate_embeddings=early, input_boxes=box, multimask_output=False)
    for hook in hooks:
        hook.remove()
    tensors = recorder.tensors | {
        "pixel_values": pixels.half(),
        "original_size": torch.tensor(SAM_HQ_SIZE),
        "reshaped_input_size": torch.tensor(target),
        "image_embeddings": embeddings,
        "image_wide_positional_embeddings": model.get_image_wide_positional_embeddings(),
        "hq_features": parts.tensors["image"] + parts.tensors["early"],
    }
    write_tensors(folder / "image.safetensors", tensors)

    def predict(prompts: Tensors, multimask: bool) -> Tensors:
        output = model(
            image_embeddings=embeddings, intermediate_embeddings=early, multimask_output=multimask, **prompts
        )
        return {"low_res_masks": output.pred_masks, "iou_scores": output.iou_scores}

    def finish(masks: torch.Tensor, binarize: bool) -> torch.Tensor:
        return processor.post_process_masks(masks, [SAM_HQ_SIZE], [target], binarize=binarize)[0]

    mask_side = 4 * side // SAM_HQ["vision_config"]["patch_size"]
    modules = (model.prompt_encoder, decoder.transformer)
    cases = write_cases(folder, SAM_HQ_SIZE, target, mask_side, modules, predict, finish)
    check_prompts(processor, image, cases)
    original = write_original(folder, model)
    encoded = original.image_encoder(pixels)
    require_close("image_embeddings", embeddings, encoded[0])
    require_close("hq_features", tensors["hq_features"], hq_features(original.mask_decoder, *encoded))
    compare_with_authors(original, encoded, cases)


# Light HQ-SAM


def build_light(seed: int) -> nn.Module:
    """The authors' model with a small TinyViT, in float32, with random values in every tensor."""
    from segment_anything_hq.modeling.tiny_vit_sam import LayerNorm2d, TinyViT

    class SmallTinyViT(TinyViT):
        """The authors' TinyViT, whose forward pass has fixed views of 64 x 64 cells, with maps of any size."""

        def forward_features(self, pixels: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            maps = (self.img_size // 16, self.img_size // 16)
            tokens = self.layers[1](self.layers[0](self.patch_embed(pixels)))
            early = tokens.unflatten(1, maps)
            for layer in self.layers[2:]:
                tokens = layer(tokens)
            return self.neck(tokens.unflatten(1, maps).permute(0, 3, 1, 2)), [early]

    sizes = {name: value for name, value in TINY_VIT.items() if name != "image_size"}
    encoder = SmallTinyViT(img_size=TINY_VIT["image_size"], num_classes=5, drop_path_rate=0.0, **sizes)
    # The authors choose stride 1 by the published width of the last stage.
    encoder.layers[2].downsample.conv2.c.stride = (1, 1)
    width, channels = TINY_VIT["embed_dims"][-1], LIGHT_HQ["vision_config"]["output_channels"]
    encoder.neck = nn.Sequential(
        nn.Conv2d(width, channels, 1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        LayerNorm2d(channels),
    )
    model = build_original(encoder, LIGHT_HQ)
    redraw(model, seed)
    # eval() copies the attention biases into a table, which `redraw` does not change: copy them again
    return model.train().eval()


def light_hq() -> None:
    """Writes segmenter/light_hq/."""
    folder = OUT / "light_hq"
    side = TINY_VIT["image_size"]
    target = longest_edge(LIGHT_HQ_SIZE, side)
    model = build_light(seed=6)
    require_lively(model.state_dict())
    write_json(folder / "config.json", LIGHT_HQ)
    torch.save(halved(model.state_dict()), folder / "original.pth")
    image_processor = SamImageProcessor(size={"longest_edge": side}, pad_size={"height": side, "width": side})
    pixels = image_processor(picture(1, *LIGHT_HQ_SIZE), return_tensors="pt")["pixel_values"].half().float()

    recorder = Recorder()
    encoder, decoder = model.image_encoder, model.mask_decoder
    hooks = [
        recorder.on_call(module, lambda _inputs, _keywords, output, key=key: recorder.keep(key, output))
        for key, module in [
            ("vision.patch_embed", encoder.patch_embed),
            *((f"vision.stage.{index}", layer) for index, layer in enumerate(encoder.layers)),
        ]
    ]
    encoded = encoder(pixels)
    for hook in hooks:
        hook.remove()
    tensors = recorder.tensors | {
        "pixel_values": pixels.half(),
        "original_size": torch.tensor(LIGHT_HQ_SIZE),
        "reshaped_input_size": torch.tensor(target),
        "image_embeddings": encoded[0],
        "image_wide_positional_embeddings": model.prompt_encoder.get_dense_pe(),
        "hq_features": hq_features(decoder, *encoded),
    }
    write_tensors(folder / "image.safetensors", tensors)

    def predict(prompts: Tensors, multimask: bool) -> Tensors:
        inputs = decoder_inputs(model, encoded, prompts)
        if multimask:
            masks, scores = sorted_masks(decoder, inputs)
        else:
            masks, scores = decoder(**inputs, multimask_output=False, hq_token_only=False)
        return {"low_res_masks": masks[None], "iou_scores": scores[None]}

    def finish(masks: torch.Tensor, binarize: bool) -> torch.Tensor:
        resized = model.postprocess_masks(masks[0], target, LIGHT_HQ_SIZE)
        return resized > model.mask_threshold if binarize else resized

    modules = (model.prompt_encoder, decoder.transformer)
    cases = write_cases(folder, LIGHT_HQ_SIZE, target, side // 4, modules, predict, finish)
    compare_with_authors(model, encoded, cases)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if transformers.__version__ != "4.57.1":
        raise RuntimeError(f"transformers 4.57.1 is required, not {transformers.__version__}: see requirements-mm.txt")
    run_exactly()
    sam_hq()
    light_hq()


if __name__ == "__main__":
    main()
