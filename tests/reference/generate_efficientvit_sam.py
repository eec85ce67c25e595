"""Generates tiny EfficientViT-SAM models with random weights, and the results of the authors' code with them.

segmenter/efficientvit_sam/ resembles the published L models, segmenter/efficientvit_sam_xl/ the XL models. The reference is the
package efficientsam (requirements-segmenters.txt), which is the authors' code. README.md lists the tensors.
"""

import argparse
from dataclasses import dataclass

import numpy
import torch
from torch import nn
from torchvision.transforms import Compose

from fixtures import HERE, Recorder, run_exactly, write_json, write_tensors
from lively_weights import redraw
from pictures import picture
from segmenter_cases import Tensors, halved, longest_edge, require_close, require_lively, write_cases

OUT = HERE / "segmenter"
PROMPT_SIDE = 128  # prompts are in pixels of this square, whatever the size of the image encoder's input
GRID = 8
WIDTH = 32
NORM_EPS = 1e-6  # of every norm, as in the authors' list of models
PROMPT_ENCODER = {"hidden_size": WIDTH, "image_size": PROMPT_SIDE, "patch_size": 16, "mask_input_channels": 8}
MASK_DECODER = {"hidden_size": WIDTH, "mlp_dim": 48, "num_attention_heads": 4, "iou_head_hidden_dim": 32}


@dataclass
class Sizes:
    """The sizes of one tiny model, and the size of its image."""

    image_size: int
    original: tuple[int, int]
    backbone: dict
    neck: dict
    seed: int


# The last stages of `efficientvit_sam_xl` have 16 and 4 cells: with more cells than `qkv_dim`, attention first multiplies
# values by keys, else keys by queries. The stages that the neck joins have 8, 4 and 2 rows, and are resized to 8.
MODELS = {
    "efficientvit_sam": Sizes(
        image_size=64,
        original=(29, 45),
        backbone={
            "width_list": [8, 8, 16, 16, 32],
            "depth_list": [1, 1, 1, 2, 2],
            "expand_list": [1, 2, 2, 2, 3],
            "qkv_dim": 16,
        },
        neck={"fid_list": ["stage4", "stage3", "stage2"], "in_channel_list": [32, 16, 16], "expand_ratio": 1},
        seed=5,
    ),
    "efficientvit_sam_xl": Sizes(
        image_size=128,
        original=(53, 37),
        backbone={
            "width_list": [8, 8, 8, 16, 16, 32],
            "depth_list": [0, 1, 1, 2, 2, 1],
            "block_list": ["res", "fmb", "fmb", "fmb", "att@3", "att@3"],
            "expand_list": [1, 2, 2, 1, 2, 2],
            "fewer_norm_list": [False, False, False, False, True, True],
            "qkv_dim": 8,
        },
        neck={"fid_list": ["stage5", "stage4", "stage3"], "in_channel_list": [32, 16, 16], "expand_ratio": 2},
        seed=6,
    ),
}


def build_model(sizes: Sizes) -> nn.Module:
    """The authors' model in float32, with random values in every tensor."""
    from efficientsam.models.efficientvit.backbone import EfficientViTLargeBackbone
    from efficientsam.models.efficientvit.sam import EfficientViTSam, EfficientViTSamImageEncoder, SamNeck
    from efficientsam.models.nn.norm import build_norm, set_norm_eps
    from efficientsam.segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

    backbone = EfficientViTLargeBackbone(**sizes.backbone)
    neck = SamNeck(**sizes.neck, head_width=WIDTH, head_depth=2, middle_op="fmb", out_dim=WIDTH)
    encoder = EfficientViTSamImageEncoder(backbone, neck)
    for branch in neck.input_ops:  # the authors' sizes are fixed: 64 x 64 cells, 256 channels
        branch.op_list[1].size = [GRID, GRID]
    encoder.norm = build_norm("ln2d", WIDTH)
    transformer = TwoWayTransformer(
        depth=2,
        embedding_dim=WIDTH,
        num_heads=MASK_DECODER["num_attention_heads"],
        mlp_dim=MASK_DECODER["mlp_dim"],
    )
    prompt_encoder = PromptEncoder(
        embed_dim=WIDTH,
        image_embedding_size=(GRID, GRID),
        input_image_size=(PROMPT_SIDE, PROMPT_SIDE),
        mask_in_chans=PROMPT_ENCODER["mask_input_channels"],
    )
    decoder = MaskDecoder(
        transformer_dim=WIDTH,
        transformer=transformer,
        iou_head_depth=3,
        iou_head_hidden_dim=MASK_DECODER["iou_head_hidden_dim"],
    )
    model = EfficientViTSam(encoder, prompt_encoder, decoder, image_size=(PROMPT_SIDE, sizes.image_size))
    set_norm_eps(model, NORM_EPS)
    redraw(model, sizes.seed)
    return model.eval()


def write_model(name: str, sizes: Sizes, model: nn.Module) -> None:
    """Writes original.pt as the authors publish it, and a configuration with the fields that no shape shows."""
    folder = OUT / name
    configuration = {
        "model_type": "efficientvit_sam",
        "vision_config": {
            "model_type": "efficientvit",
            "image_size": sizes.image_size,
            "output_channels": WIDTH,
            "layer_norm_eps": NORM_EPS,
        },
        "prompt_encoder_config": PROMPT_ENCODER,
        "mask_decoder_config": MASK_DECODER | {"layer_norm_eps": NORM_EPS},
    }
    write_json(folder / "config.json", configuration)
    state = model.state_dict()
    require_lively(state)
    torch.save(halved(state), folder / "original.pt")
    model.load_state_dict(torch.load(folder / "original.pt", weights_only=True), strict=True)
    print(f"{name}: {len(state)} tensors, {sum(tensor.numel() for tensor in state.values()):,} numbers")


def preprocess(transform: Compose, sizes: Sizes) -> torch.Tensor:
    """The pixel values of the image (1 3 H W), which float16 represents exactly."""
    image = numpy.asarray(picture(sizes.seed, *sizes.original))
    return transform(image)[None].half().float()


def write_image(name: str, sizes: Sizes, model: nn.Module) -> torch.Tensor:
    """Writes the stages from pixels to image embeddings. Returns the embeddings."""
    recorder = Recorder()
    encoder = model.image_encoder
    modules = {f"vision.stage.{index}": stage for index, stage in enumerate(encoder.backbone.stages)}
    modules |= {f"vision.neck.{index}": branch for index, branch in enumerate(encoder.neck.input_ops)}
    modules |= {"vision.neck.middle": encoder.neck.middle, "vision.neck.output": encoder.neck.output_ops[0]}
    hooks = [
        recorder.on_call(module, lambda _inputs, _keywords, output, key=key: recorder.keep(key, output))
        for key, module in modules.items()
    ]
    pixels = preprocess(model.transform, sizes)
    embeddings = encoder(pixels)
    for hook in hooks:
        hook.remove()
    tensors = recorder.tensors | {
        "pixel_values": pixels.half(),
        "original_size": torch.tensor(sizes.original),
        "reshaped_input_size": torch.tensor(longest_edge(sizes.original, PROMPT_SIDE)),
        "image_embeddings": embeddings,
        "image_wide_positional_embeddings": model.prompt_encoder.get_dense_pe(),
    }
    write_tensors(OUT / name / "image.safetensors", tensors)
    return embeddings


def generate(name: str, sizes: Sizes) -> None:
    """Writes the folder of one model."""
    model = build_model(sizes)
    write_model(name, sizes, model)
    embeddings = write_image(name, sizes, model)
    target = longest_edge(sizes.original, PROMPT_SIDE)

    def predict(prompts: Tensors, multimask: bool) -> Tensors:
        points = (prompts["input_points"][0], prompts["input_labels"][0]) if "input_points" in prompts else None
        boxes = prompts["input_boxes"][0] if "input_boxes" in prompts else None
        sparse, dense = model.prompt_encoder(points=points, boxes=boxes, masks=prompts.get("input_masks"))
        masks, scores = model.mask_decoder(
            image_embeddings=embeddings,
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
        )
        return {"low_res_masks": masks[None], "iou_scores": scores[None]}

    def finish(masks: torch.Tensor, binarize: bool) -> torch.Tensor:
        resized = model.postprocess_masks(masks[0], target, sizes.original)
        return resized > model.mask_threshold if binarize else resized

    modules = (model.prompt_encoder, model.mask_decoder.transformer)
    cases = write_cases(OUT / name, sizes.original, target, 4 * GRID, modules, predict, finish)
    compare_with_predictor(model, sizes, embeddings, cases)


def compare_with_predictor(model: nn.Module, sizes: Sizes, embeddings: torch.Tensor, cases: dict) -> None:
    """Checks that the authors' predictor scales prompts and masks in the same way."""
    from efficientsam.models.efficientvit.sam import EfficientViTSamPredictor

    predictor = EfficientViTSamPredictor(model)
    predictor.set_image(numpy.asarray(picture(sizes.seed, *sizes.original)))
    predictor.features = embeddings  # of the pixel values rounded to float16
    for name in ("box", "points"):
        case = cases[name]
        prompts = {"multimask_output": case["low_res_masks"].shape[2] > 1, "return_logits": True}
        if name == "box":
            prompts["box"] = case["original_input_boxes"][0, 0].numpy()
        else:
            prompts["point_coords"] = case["original_input_points"][0, 0].numpy()
            prompts["point_labels"] = case["input_labels"][0, 0].numpy()
        masks, scores, low_res_masks = predictor.predict(**prompts)
        require_close(f"{name}, low_res_masks", case["low_res_masks"][0, 0], torch.tensor(low_res_masks))
        require_close(f"{name}, iou_scores", case["iou_scores"][0, 0], torch.tensor(scores))
        require_close(f"{name}, final_logits", case["final_logits"][0], torch.tensor(masks))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    run_exactly()
    for name, sizes in MODELS.items():
        generate(name, sizes)


if __name__ == "__main__":
    main()
