"""Generates a tiny MM Grounding DINO model with random weights, and the results of its reference with it.

The reference is transformers 4.57.1 (requirements-mm.txt), because 4.44.2 does not have this family. Writes
detector/mm/: config.json, preprocessor_config.json and model.safetensors as `save_pretrained` writes them, and one
safetensors file per case. README.md lists the tensors.
"""

import copy
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from transformers import GroundingDinoImageProcessor, MMGroundingDinoConfig, MMGroundingDinoForObjectDetection

from fixtures import Recorder, run_exactly, write_tensors
from generate_detector import (
    INFINITE,
    OUT,
    PLAIN,
    load_tokenizer,
    prepare,
    record_backbone,
    record_decoder,
    record_encoder,
    record_proposals,
    record_text,
    smallest_gap,
)
from lively_weights import redraw

FOLDER = OUT / "mm"
WEIGHTS_SEED = 5

# The tiny model `plain`, with the feature levels of the published large models and a third decoder layer.
FIELDS = PLAIN | {
    "backbone_config": PLAIN["backbone_config"] | {"out_indices": [1, 2, 3, 4]},
    "num_feature_levels": 5,
    "decoder_layers": 3,
}

# case -> sizes (height, width), texts. In the batch, half of the smallest level of the second picture is padding.
CASES = {
    "single": ([(45, 70)], ["a cat. a remote control."]),
    "batch": (
        [(25, 75), (30, 33)],
        ["a red car. the white house at night? zebra-striped café. dog.", "Ünïcode: players' (left) hands"],
    ),
}

# Tensors with these prefixes and without these suffixes are written; the largest tensor for one case only.
KEPT = tuple(
    (
        "pixel_values pixel_mask input_ids token_type_ids attention_mask text_self_attention_masks position_ids "
        "bert_last_hidden_state swin.0 swin.1 swin.2 swin.3 source. source_mask. spatial_shapes "
        "encoder.valid_ratios encoder.vision encoder.text proposals.output_proposals proposals.class_logits "
        "proposals.topk decoder.init_reference_points decoder.0. decoder.1. decoder.2. logits pred_boxes"
    ).split()
)
DROPPED = (".position_embeddings", ".hidden_states")
DROPPED_BY_CASE = {"single": (), "batch": ("proposals.class_logits",)}


def build_model() -> MMGroundingDinoForObjectDetection:
    """The model in float32, with random values in every tensor, and another class bias for each layer."""
    model = MMGroundingDinoForObjectDetection(MMGroundingDinoConfig(**copy.deepcopy(FIELDS)))
    redraw(model, WEIGHTS_SEED)
    for index, embed in enumerate(model.class_embed):
        embed.bias.fill_(-2 + 0.5 * index)
    model.model.encoder_output_class_embed.bias.fill_(-3.25)
    return model.eval()


def write_model(model: MMGroundingDinoForObjectDetection) -> None:
    """Writes the checkpoint with `save_pretrained`, and checks that loading it gives the same tensors."""
    copy.deepcopy(model).half().save_pretrained(FOLDER)
    GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 107}).save_pretrained(FOLDER)
    for file in FOLDER.glob("*"):
        file.chmod(0o644)
    loaded, report = MMGroundingDinoForObjectDetection.from_pretrained(
        FOLDER, dtype=torch.float32, output_loading_info=True
    )
    if any(report.values()):
        raise RuntimeError(f"the saved model cannot be loaded completely: {report}")
    expected, found = model.state_dict(), loaded.state_dict()
    different = [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])]
    if different or expected.keys() != found.keys():
        raise RuntimeError(f"the loaded tensors differ from the saved ones: {different}")
    check_names(model, FOLDER / "model.safetensors")


def check_names(model: MMGroundingDinoForObjectDetection, path: Path) -> None:
    """Checks that the file has the short name of each head for layer 0, and the long name for the other layers."""
    stored = load_file(path)
    names = set(model.state_dict())
    for index in range(FIELDS["decoder_layers"]):
        for kind in ("bbox_embed", "class_embed"):
            absent = f"model.decoder.{kind}.0." if index == 0 else f"{kind}.{index}."
            names -= {name for name in names if name.startswith(absent)}
    if names != set(stored):
        raise RuntimeError(f"unexpected names: {sorted(names ^ set(stored))}")


def run(model: MMGroundingDinoForObjectDetection, inputs: dict) -> dict[str, torch.Tensor]:
    """The tensors to write of one forward pass of a copy of the model."""
    model = copy.deepcopy(model)  # recording adds hooks, which would stay
    recorder = Recorder()
    for record in (record_text, record_backbone, record_encoder, record_proposals, record_decoder):
        record(model, recorder)
    output = model(**inputs, output_hidden_states=False)
    tensors = recorder.tensors | inputs
    tensors["pixel_values"] = inputs["pixel_values"].half()
    tensors["pixel_mask"] = inputs["pixel_mask"].to(torch.uint8)
    text_length = inputs["input_ids"].shape[1]
    tensors["proposals.class_logits"] = output.enc_outputs_class[..., :text_length]
    scores = output.enc_outputs_class.max(-1)[0]
    tensors["proposals.topk"] = torch.topk(scores, model.config.num_queries, dim=1)[1]
    tensors["decoder.init_reference_points"] = output.init_reference_points
    for index in range(model.config.decoder_layers):
        tensors[f"decoder.{index}.normed_hidden_states"] = output.intermediate_hidden_states[:, index]
        tensors[f"decoder.{index}.reference_points"] = output.intermediate_reference_points[:, index]
    tensors["logits"] = output.logits
    tensors["pred_boxes"] = output.pred_boxes
    return {key: value for key, value in tensors.items() if key.startswith(KEPT) and not key.endswith(DROPPED)}


def main() -> None:
    if transformers.__version__ != "4.57.1":
        raise RuntimeError(f"transformers 4.57.1 is required, not {transformers.__version__}: see requirements-mm.txt")
    run_exactly()
    model = build_model()
    write_model(model)
    tokenizer = load_tokenizer()
    for case, (sizes, texts) in CASES.items():
        for picture_seed in range(0, 1000, 10):
            tensors = run(model, prepare(sizes, texts, tokenizer, model.config.max_text_len, picture_seed))
            if smallest_gap(tensors) > 2e-3:
                break
        else:
            raise RuntimeError(f"{case}: the scores of the proposals are too close for every picture")
        print(f"{case}: pictures {picture_seed}, scores differ by {smallest_gap(tensors):.4f}")
        tensors = {key: value for key, value in tensors.items() if key not in DROPPED_BY_CASE[case]}
        write_tensors(FOLDER / f"{case}.safetensors", tensors, infinite=INFINITE, texts=texts)


if __name__ == "__main__":
    main()
