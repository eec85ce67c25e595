"""Generates a tiny SAM 2 model with random weights, and the results of its reference with it.

The reference is transformers 4.57.1 (requirements-mm.txt). Writes segmenter/sam2/: the checkpoint as `save_pretrained` writes
it, config.video.json with the same fields in the form of the published files, original.pt in the authors' format, and the
fixtures. The authors' code (requirements-segmenters.txt) must give the same results. README.md lists the tensors.
"""

import argparse
import copy
import itertools

import numpy
import torch
import transformers
from PIL import Image
from torch import nn
from transformers import Sam2Config, Sam2ImageProcessorFast, Sam2Model, Sam2Processor, Sam2VideoConfig

from fixtures import HERE, Recorder, run_exactly, write_json, write_tensors
from generate_segmenter import CASES
from lively_weights import redraw
from original_family_names import sam2_to_original
from pictures import picture
from segmenter_cases import (
    Tensors,
    check_prompts,
    copies,
    halved,
    prompts_of,
    require_close,
    require_lively,
    write_cases,
)

FOLDER = HERE / "segmenter" / "sam2"
SIDE = 128
SIZE = (53, 75)
STABLE, MARGIN = 0.98, 0.005  # the decoder's threshold; choices by smaller differences of scores would be ambiguous

# The maps have 32, 16, 8 and 4 rows. Windows 6 and 3 do not divide theirs. Blocks 4 and 5 attend globally.
BACKBONE = {
    "hidden_size": 4,
    "image_size": [SIDE, SIDE],
    "blocks_per_stage": [1, 2, 3, 2],
    "embed_dim_per_stage": [4, 8, 16, 32],
    "num_attention_heads_per_stage": [1, 2, 4, 8],
    "window_size_per_stage": [8, 4, 6, 3],
    "window_positional_embedding_background_size": [3, 3],
    "global_attention_blocks": [4, 5],
}
VISION = {
    "backbone_channel_list": [32, 16, 8, 4],
    "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
    "fpn_hidden_size": 32,
}
PROMPT_ENCODER = {"hidden_size": 32, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 8}
MASK_DECODER = {"hidden_size": 32, "mlp_dim": 48, "num_attention_heads": 4, "iou_head_hidden_dim": 32}


def fields() -> dict:
    """Fresh copies of the fields: the configurations keep and change the dictionaries that they are given."""
    return copy.deepcopy(
        {
            "vision_config": VISION | {"backbone_config": BACKBONE},
            "prompt_encoder_config": PROMPT_ENCODER,
            "mask_decoder_config": MASK_DECODER,
        }
    )


def build_model(seed: int, scale: float) -> Sam2Model:
    """The model in float32, with random values in every tensor. `scale` multiplies the logits of the mask of token 0."""
    model = Sam2Model._from_config(Sam2Config(**fields()), attn_implementation="eager")
    redraw(model, seed)
    for tensor in model.mask_decoder.output_hypernetworks_mlps[0].proj_out.parameters():
        tensor.data.copy_((scale * tensor).half().float())
    return model.eval()


def write_model(model: Sam2Model, processor: Sam2ImageProcessorFast) -> None:
    """Writes the checkpoint with `save_pretrained`, and checks that loading it gives the same tensors."""
    copy.deepcopy(model).half().save_pretrained(FOLDER)
    processor.save_pretrained(FOLDER)
    video = Sam2VideoConfig(**fields(), image_size=SIDE, memory_attention_rope_feat_sizes=[8, 8])
    video.architectures = ["Sam2VideoModel"]
    write_json(FOLDER / "config.video.json", video.to_dict())
    for file in FOLDER.glob("*"):
        file.chmod(0o644)
    loaded, report = Sam2Model.from_pretrained(FOLDER, dtype=torch.float32, output_loading_info=True)
    if any(report.values()):
        raise RuntimeError(f"the saved model cannot be loaded completely: {report}")
    found = loaded.state_dict()
    different = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, found[name])]
    if different or model.state_dict().keys() != found.keys():
        raise RuntimeError(f"the loaded tensors differ from the saved ones: {different}")


# authors' code


def build_original() -> nn.Module:
    """The authors' model with the options of SAM 2.1, random weights, and the same sizes."""
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam.mask_decoder import MaskDecoder
    from sam2.modeling.sam.prompt_encoder import PromptEncoder
    from sam2.modeling.sam.transformer import TwoWayTransformer
    from sam2.modeling.sam2_base import SAM2Base

    width, grid = PROMPT_ENCODER["hidden_size"], SIDE // 16

    class TinySAM2(SAM2Base):
        """The authors' model, whose heads have fixed sizes, with the heads of the tiny model."""

        def _build_sam_heads(self) -> None:
            super()._build_sam_heads()
            self.sam_prompt_encoder = PromptEncoder(
                embed_dim=width,
                image_embedding_size=(grid, grid),
                input_image_size=(SIDE, SIDE),
                mask_in_chans=PROMPT_ENCODER["mask_input_channels"],
            )
            transformer = TwoWayTransformer(
                depth=2,
                embedding_dim=width,
                num_heads=MASK_DECODER["num_attention_heads"],
                mlp_dim=MASK_DECODER["mlp_dim"],
            )
            self.sam_mask_decoder = MaskDecoder(
                transformer_dim=width,
                transformer=transformer,
                iou_head_hidden_dim=MASK_DECODER["iou_head_hidden_dim"],
                use_high_res_features=True,
                iou_prediction_use_sigmoid=True,
                dynamic_multimask_via_stability=True,
                dynamic_multimask_stability_delta=0.05,
                dynamic_multimask_stability_thresh=STABLE,
                pred_obj_scores=True,
                pred_obj_scores_mlp=True,
                use_multimask_token_for_obj_ptr=True,
            )

    trunk = Hiera(
        embed_dim=BACKBONE["hidden_size"],
        num_heads=1,
        stages=tuple(BACKBONE["blocks_per_stage"]),
        global_att_blocks=tuple(BACKBONE["global_attention_blocks"]),
        window_pos_embed_bkg_spatial_size=tuple(BACKBONE["window_positional_embedding_background_size"]),
        window_spec=tuple(BACKBONE["window_size_per_stage"]),
    )
    neck = FpnNeck(
        position_encoding=PositionEmbeddingSine(num_pos_feats=width),
        d_model=width,
        backbone_channel_list=VISION["backbone_channel_list"],
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )
    memory_encoder = MemoryEncoder(
        in_dim=width,
        out_dim=8,
        mask_downsampler=MaskDownSampler(width, kernel_size=3, stride=2, padding=1, total_stride=4),
        fuser=Fuser(CXBlock(dim=width, kernel_size=3, padding=1), num_layers=1),
        position_encoding=PositionEmbeddingSine(num_pos_feats=8),
    )
    model = TinySAM2(
        image_encoder=ImageEncoder(trunk, neck, scalp=1),
        memory_attention=nn.Identity(),
        memory_encoder=memory_encoder,
        image_size=SIDE,
        directly_add_no_mem_embed=True,
        use_high_res_features_in_sam=True,
        iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=True,
        proj_tpos_enc_in_obj_ptrs=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        fixed_no_obj_ptr=True,
        use_multimask_token_for_obj_ptr=True,
        use_mlp_for_obj_ptr_proj=True,
        no_obj_embed_spatial=True,
    )
    redraw(model, seed=0)  # for the tensors of the memory, which transformers' image model does not have
    return model.eval()


# Names of the authors' tensors for videos, which transformers' image model does not have.
MEMORY = (
    "maskmem_tpos_enc no_mem_pos_enc no_obj_ptr no_obj_embed_spatial mask_downsample. memory_attention. "
    "memory_encoder. obj_ptr_proj. obj_ptr_tpos_proj."
).split()


def require_memory_only(report) -> None:
    """Checks that the tensors of an image model are those of the authors' model, except for the memory."""
    if report.unexpected_keys or any(not name.startswith(tuple(MEMORY)) for name in report.missing_keys):
        raise RuntimeError(f"the names differ from the authors': {report}")


def image_predictor(original: nn.Module, image: Image.Image, pixels: torch.Tensor):
    """The authors' image predictor, with the image set to given pixel values.

    Its own preprocessing is not used: it resizes float32 numbers, while transformers' resizes and rounds bytes.
    """
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    predictor = SAM2ImagePredictor(original)
    predictor._bb_feat_sizes = [(pixels.shape[-1] // stride,) * 2 for stride in (4, 8, 16)]
    predictor._transforms.to_tensor = lambda _image: pixels[0]
    predictor._transforms.transforms = nn.Identity()
    predictor.set_image(image)
    return predictor


def write_original(model: Sam2Model) -> nn.Module:
    """Writes original.pt, and returns the authors' model with the tensors of the file."""
    original = build_original()
    report = original.load_state_dict(sam2_to_original(model.state_dict()), strict=False)
    require_memory_only(report)
    require_lively(original.state_dict())
    torch.save({"model": halved(original.state_dict())}, FOLDER / "original.pt")
    stored = torch.load(FOLDER / "original.pt", weights_only=True)["model"]
    original.load_state_dict(stored, strict=True)
    print(f"original.pt: {len(stored)} tensors, {len(report.missing_keys)} of them of the memory")
    return original


def compare_with_authors(original: nn.Module, image: Image.Image, pixels: torch.Tensor, cases: dict) -> None:
    """Checks that the authors' image predictor gives the same results for the same pixel values."""
    predictor = image_predictor(original, image, pixels)
    for name, tensors in cases.items():
        prompts = {"multimask_output": CASES[name]["multimask"], "return_logits": True}
        if "original_input_boxes" in tensors:
            prompts["box"] = tensors["original_input_boxes"][0].numpy()
        if "original_input_points" in tensors:
            prompts["point_coords"] = tensors["original_input_points"][0].numpy()
            prompts["point_labels"] = tensors["input_labels"][0].numpy()
        if "input_masks" in tensors:
            prompts["mask_input"] = tensors["input_masks"][0].numpy()
        masks, scores, low_res_masks = (torch.from_numpy(numpy.array(array)) for array in predictor.predict(**prompts))
        # the predictor returns low-resolution logits between -32 and 32
        ours = tensors["low_res_masks"][0].clamp(-32, 32)
        require_close(f"{name}, low_res_masks", ours, low_res_masks.reshape(ours.shape))
        require_close(f"{name}, iou_scores", tensors["iou_scores"][0], scores.reshape(tensors["iou_scores"][0].shape))
        require_close(f"{name}, final_logits", tensors["final_logits"], masks.reshape(tensors["final_logits"].shape))


# fixtures


def stability_scores(model: Sam2Model, embeddings: list[torch.Tensor], prompts: Tensors) -> tuple[list, list]:
    """For each prompt, the stability score of the mask of token 0, and how far the best of the other tokens is ahead."""
    stability, leads = [], []
    decoder = model.mask_decoder
    choose = decoder._dynamic_multimask_via_stability

    def keep(masks: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        stability.extend(decoder._get_stability_scores(masks[:, :, 0]).flatten().tolist())
        best = scores[0, :, 1:].topk(2).values
        leads.extend((best[:, 0] - best[:, 1]).tolist())
        return choose(masks, scores)

    decoder._dynamic_multimask_via_stability = keep
    model(image_embeddings=embeddings, multimask_output=False, **copies(prompts))
    del decoder._dynamic_multimask_via_stability
    return stability, leads


def choose_model(processor: Sam2Processor, image: Image.Image) -> tuple[Sam2Model, Tensors, list[torch.Tensor]]:
    """The first model whose choices between token 0 and the others are unambiguous, and both occur in `boxes`."""
    pixels = processor(image, return_tensors="pt")["pixel_values"].half().float()
    for seed, scale in itertools.product(range(200), (3, 4, 6)):
        model = build_model(seed, scale)
        embeddings = model.get_image_embeddings(pixels)
        scores, leads = {}, []
        for name, case in CASES.items():
            if not case["multimask"]:
                prompts = prompts_of(case, SIZE, (SIDE, SIDE), SIDE // 4)[1]
                scores[name], ahead = stability_scores(model, embeddings, prompts)
                leads += ahead
        clear = min(leads) > MARGIN and all(abs(one - STABLE) > MARGIN for row in scores.values() for one in row)
        both = 0 < min(scores["boxes"]) < STABLE < max(scores["boxes"]) < 1
        if clear and both:
            print(f"seed {seed}, scale {scale}; the best of tokens 1 to 3 leads by {min(leads):.4f} or more")
            for name, row in scores.items():
                print(f"  {name}: stability (token 0 from {STABLE}) {', '.join(f'{score:.4f}' for score in row)}")
            return model, pixels, embeddings
    raise RuntimeError("no seed gives unambiguous choices")


def write_image(model: Sam2Model, pixels: torch.Tensor) -> None:
    """Writes the stages from pixels to image embeddings."""
    recorder = Recorder()
    backbone = model.vision_encoder.backbone
    hooks = [
        recorder.before_call(
            backbone.blocks[0], lambda inputs, _keywords: recorder.keep("vision.patch_embed", inputs[0])
        )
    ]
    for stage, block in enumerate(backbone.stage_ends):
        hooks.append(
            recorder.on_call(
                backbone.blocks[block],
                lambda _inputs, _keywords, output, stage=stage: recorder.keep(f"vision.stage.{stage}", output),
            )
        )
    high_0, high_1, embeddings = model.get_image_embeddings(pixels)
    for hook in hooks:
        hook.remove()
    tensors = recorder.tensors | {
        "pixel_values": pixels.half(),
        "original_size": torch.tensor(SIZE),
        "reshaped_input_size": torch.tensor([SIDE, SIDE]),
        "high_res.0": high_0,
        "high_res.1": high_1,
        "image_embeddings": embeddings,
        "image_wide_positional_embeddings": model.get_image_wide_positional_embeddings(),
    }
    write_tensors(FOLDER / "image.safetensors", tensors)


def write_preprocess() -> None:
    """Writes pixel values of two pictures: a square without regard to the aspect ratio."""
    processor = Sam2ImageProcessorFast(size={"height": 48, "width": 48}, mask_size={"height": 12, "width": 12})
    tensors = {
        f"sam2.{name}": processor(
            Image.open(HERE / "processing" / "pictures" / f"{name}.png").convert("RGB"), return_tensors="pt"
        )["pixel_values"].half()
        for name in ("photo", "tall")
    }
    configuration = {"sam2": {"size": {"height": 48, "width": 48}}}
    write_tensors(HERE / "processing" / "preprocess_sam2.safetensors", tensors, configuration=configuration)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if transformers.__version__ != "4.57.1":
        raise RuntimeError(f"transformers 4.57.1 is required, not {transformers.__version__}: see requirements-mm.txt")
    run_exactly()
    FOLDER.mkdir(parents=True, exist_ok=True)
    image_processor = Sam2ImageProcessorFast(
        size={"height": SIDE, "width": SIDE}, mask_size={"height": SIDE // 4, "width": SIDE // 4}
    )
    processor = Sam2Processor(image_processor, target_size=SIDE)
    image = picture(2, *SIZE)
    model, pixels, embeddings = choose_model(processor, image)
    require_lively(model.state_dict())
    write_model(model, image_processor)
    write_image(model, pixels)

    def predict(prompts: Tensors, multimask: bool) -> Tensors:
        output = model(image_embeddings=embeddings, multimask_output=multimask, **prompts)
        return {
            "low_res_masks": output.pred_masks,
            "iou_scores": output.iou_scores,
            "object_score_logits": output.object_score_logits,
        }

    def finish(masks: torch.Tensor, binarize: bool) -> torch.Tensor:
        return processor.post_process_masks(masks, [SIZE], binarize=binarize)[0]

    parts = (model.prompt_encoder, model.mask_decoder.transformer)
    cases = write_cases(FOLDER, SIZE, (SIDE, SIDE), SIDE // 4, parts, predict, finish)
    check_prompts(processor, image, cases)
    compare_with_authors(write_original(model), image, pixels, cases)
    write_preprocess()


if __name__ == "__main__":
    main()
