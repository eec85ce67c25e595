"""Generates checkpoints of full size with random weights, and compares groundling with the reference on them.

    python tests/reference/full_size.py [--out DIR] [--only NAME ...] [--step STEP]

Steps: `make` writes each checkpoint in both published formats, with the names of transformers and with the original names.
`reference` computes the results of transformers (of the original code for mobile-sam) in float32 for three photographs, one by
one and as a batch. `compare` runs groundling on the same files, and prints the differences, its memory and its load time. Each
model has its own process. README.md lists the files and tensors.
"""

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import resource
import subprocess
import sys
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import (
    BertTokenizerFast,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    SamConfig,
    SamImageProcessor,
    SamModel,
    SamVisionConfig,
)

from fixtures import HERE, Recorder, write_json, write_tensors
from lively_weights import redraw, temper

OUT = Path("target/full-size")
SEED = 0
VOCABULARY = HERE.parent.parent / "models" / "bert-base-uncased" / "vocab.txt"
DETECTORS = ("grounding-dino-tiny", "grounding-dino-base")
# name -> fields of the vision encoder's configuration that are not the default
SEGMENTERS = {
    "sam-vit-base": {},
    "sam-vit-large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "mlp_dim": 4096,
        "global_attn_indexes": [5, 11, 17, 23],
    },
    "slim-sam-77": {"hidden_size": 168, "mlp_dim": 696},
}
MOBILE_SAM = "mobile-sam"
NAMES = (MOBILE_SAM, "grounding-dino-tiny", "slim-sam-77", "sam-vit-base", "sam-vit-large", "grounding-dino-base")

# name -> the file in NAME-original, the prefix of its keys, and segment_anything's name of the model
ORIGINALS = {
    "grounding-dino-tiny": ("groundingdino_swint_ogc.pth", "module.", None),
    "grounding-dino-base": ("groundingdino_swinb_cogcoor.pth", "", None),
    "sam-vit-base": ("sam_vit_b_01ec64.pth", "", "vit_b"),
    "sam-vit-large": ("sam_vit_l_0b3195.pth", "", "vit_l"),
    "slim-sam-77": ("slim_sam.pth", "", None),
}

# name -> package, file, (left, top, right, bottom), text. The wide one becomes 800 x 1333 in the detectors.
PHOTOGRAPHS = {
    "wide": ("sklearn", "datasets/images/china.jpg", (0, 20, 640, 404), "a temple. a roof. two trees. the red wall."),
    "portrait": (
        "matplotlib",
        "mpl-data/sample_data/grace_hopper.jpg",
        (56, 0, 456, 600),
        "a cat. a remote control.",
    ),
    "square": (
        "skimage",
        "data/astronaut.png",
        (0, 0, 512, 512),
        "is it an astronaut? a flag. her orange suit. a model of the space shuttle. white teeth. two hands.",
    ),
}
CASES = {
    "single-0": ["wide"],
    "single-1": ["portrait"],
    "single-2": ["square"],
    "batch": ["wide", "portrait", "square"],
}

# Prompts for each photograph, as fractions of its width and height.
BOXES = [[0.21, 0.13, 0.78, 0.86], [0.05, 0.6, 0.3, 0.97], [0.6, 0.02, 0.98, 0.4]]
POINTS = [[0.31, 0.42], [0.84, 0.77]]
LABELS = [1, 0]


def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Normal noise, seeded with the tensor's name."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{SEED} {name}".encode()))
    return torch.randn(shape, generator=generator)


def describe(name: str, tensor: torch.Tensor) -> None:
    """Prints the scale of the finite numbers of a tensor."""
    finite = tensor[torch.isfinite(tensor)].float()
    shape = " x ".join(map(str, tensor.shape))
    print(f"  {name}: {shape}, largest {finite.abs().max():.3g}, mean {finite.mean():.3g}, std {finite.std():.3g}")


def rounded(tensor: torch.Tensor) -> list[float]:
    """The numbers rounded for printing."""
    return [round(number, 2) for number in tensor.tolist()]


# make


def build_detector(name: str) -> GroundingDinoForObjectDetection:
    """The published configuration of the conversion script, with random weights."""
    # newer versions of transformers, with which full_size_families.py imports this file, do not contain the script
    from transformers.models.grounding_dino.convert_grounding_dino_to_hf import get_grounding_dino_config

    model = GroundingDinoForObjectDetection(get_grounding_dino_config(name))
    redraw(model, SEED)
    temper(model)
    return model.eval()


def build_segmenter(name: str) -> SamModel:
    """The published configuration with random weights."""
    vision = SamVisionConfig(**SEGMENTERS[name])
    model = SamModel(SamConfig(vision_config=vision))
    redraw(model, SEED)
    return model.eval()


def build_mobile_sam() -> nn.Module:
    """MobileSAM of its own code, with random weights."""
    from mobile_sam import sam_model_registry

    model = sam_model_registry["vit_t"]()
    redraw(model, SEED)
    return model.eval()


def make(name: str, out: Path) -> None:
    """Writes one checkpoint in both formats."""
    if name == MOBILE_SAM:
        make_mobile_sam(out)
    elif name in DETECTORS:
        make_detector(name, out)
    else:
        make_segmenter(name, out)


def make_mobile_sam(out: Path) -> None:
    """Writes the torch file, and the same tensors as safetensors."""
    write_original_only(build_mobile_sam(), out / MOBILE_SAM, "mobile_sam.pt")


def write_original_only(model: nn.Module, folder: Path, file: str) -> None:
    """Writes a model that only its authors' code has: the torch file, and a folder with the same tensors as safetensors."""
    state = OrderedDict(model.state_dict())
    save_torch(state, folder / file)
    model.load_state_dict(torch.load(folder / file, weights_only=True), strict=True)
    copy = folder.with_name(f"{folder.name}-safetensors") / "model.safetensors"
    copy.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, copy, metadata={"format": "pt"})
    copy.chmod(0o644)


def make_detector(name: str, out: Path) -> None:
    """Writes the folder of transformers, and a copy with the original names."""
    from original_names import check_grounding_dino, grounding_dino_to_original

    model = build_detector(name)
    folder = out / name
    save_pretrained(model, folder)
    save_processor(folder)
    state = model.state_dict()
    file, prefix, _ = ORIGINALS[name]
    original = grounding_dino_to_original(state, model.config, draw)
    file = out / f"{name}-original" / file
    save_torch({"model": OrderedDict((prefix + key, tensor) for key, tensor in original.items())}, file)
    written = torch.load(file, weights_only=True)["model"]
    print(f"  {len(written)} tensors in {file.name}, {len(state)} in transformers")
    check_grounding_dino(written, state, model.config)


def save_processor(folder: Path) -> None:
    """Writes a detector's preprocessor_config.json and tokenizer.json."""
    GroundingDinoImageProcessor().save_pretrained(folder)
    BertTokenizerFast(vocab_file=str(VOCABULARY)).backend_tokenizer.save(str(folder / "tokenizer.json"))


def make_segmenter(name: str, out: Path) -> None:
    """Writes the folder of transformers, and a copy with the original names."""
    from original_names import check_sam, sam_to_original
    from segment_anything import sam_model_registry

    model = build_segmenter(name)
    file, _, registered = ORIGINALS[name]
    folder = out / name
    save_pretrained(model, folder)
    if registered:  # the published config has every field; that of SlimSAM has only those that are not defaults
        write_json(folder / "config.json", json.loads(model.config.to_json_string(use_diff=False)))
    SamImageProcessor().save_pretrained(folder)
    state = model.state_dict()
    file = out / f"{name}-original" / file
    save_torch(sam_to_original(state), file)
    written = torch.load(file, weights_only=True)
    print(f"  {len(written)} tensors in {file.name}, {len(state)} in transformers")
    check_sam(written, state)
    if registered:
        with torch.device("meta"):  # without initial weights: the file has all of them
            original = sam_model_registry[registered]()
        original.load_state_dict(written, strict=True, assign=True)
        print(f"  segment_anything's {registered} loads the file, strictly")


def save_pretrained(model: nn.Module, folder: Path) -> None:
    """Writes config.json and model.safetensors in the published format: float32, shared tensors once."""
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def save_torch(value: dict, file: Path) -> None:
    """Writes a torch file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, file)


# reference


def write_photographs(out: Path) -> None:
    """Writes photographs of Python packages, cropped to three aspect ratios."""
    folder = out / "photographs"
    folder.mkdir(parents=True, exist_ok=True)
    for name, (package, file, box, _) in PHOTOGRAPHS.items():
        root = Path(importlib.util.find_spec(package).origin).parent
        Image.open(root / file).convert("RGB").crop(box).save(folder / f"{name}.png")


def photographs(out: Path, case: str) -> list[Image.Image]:
    """The photographs of a case."""
    return [Image.open(out / "photographs" / f"{name}.png").convert("RGB") for name in CASES[case]]


def run(name: str, out: Path) -> Iterator:
    """The results of one model: see `run_detector` and `run_segmenter`."""
    if name in DETECTORS:
        return run_detector(GroundingDinoForObjectDetection, name, out)
    load = load_mobile_sam if name == MOBILE_SAM else load_sam
    return run_segmenter(load(out / name), out)


def reference(name: str, out: Path, run: Callable[[str, Path], Iterator]) -> None:
    """Writes the results of all cases of one model, and notes with their times."""
    torch.set_grad_enabled(False)
    cases = run(name, out)
    seconds = {}
    parameters = next(cases)
    for case, tensors, took, notes in cases:
        seconds[case] = round(took, 2)
        print(f"{name}/{case}: {took:.1f} s")
        for key, tensor in tensors.items():
            if tensor.is_floating_point():
                describe(key, tensor)
        path = out / name / "expected" / f"{case}.safetensors"
        write_tensors(path, tensors, infinite=("logits",), **notes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    notes = {
        "seconds": seconds,
        "peak_memory_mib": round(peak / 1024),
        "parameters": parameters,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "photographs": {case: CASES[case] for case in seconds},
    }
    write_json(out / name / "expected" / "notes.json", notes)


def run_detector(kind: type, name: str, out: Path, cases: Iterable[str] = CASES) -> Iterator:
    """Yields the number of parameters, and then (name, tensors, seconds, notes) for each case."""
    folder = out / name
    model, loading = kind.from_pretrained(folder, output_loading_info=True)
    require_complete(loading)
    yield sum(parameter.numel() for parameter in model.parameters())
    processor = GroundingDinoProcessor(
        GroundingDinoImageProcessor.from_pretrained(folder),
        BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")),
    )
    for case in cases:
        pictures = CASES[case]
        texts = [PHOTOGRAPHS[picture][3] for picture in pictures]
        inputs = dict(processor(images=photographs(out, case), text=texts, padding=True, return_tensors="pt"))
        recorder = Recorder()

        def keep_outputs(_inputs, _keywords, output, recorder=recorder):
            recorder.keep("encoder.vision", output.last_hidden_state_vision)
            recorder.keep("encoder.text", output.last_hidden_state_text)

        hook = recorder.on_call(model.model.encoder, keep_outputs)
        started = time.monotonic()
        output = model(**inputs)
        took = time.monotonic() - started
        hook.remove()
        scores = output.enc_outputs_class.max(-1)[0]
        best, chosen = torch.topk(scores, model.config.num_queries + 1, dim=1)
        tensors = inputs | recorder.tensors
        tensors["pixel_mask"] = inputs["pixel_mask"].to(torch.uint8)
        tensors["proposals.topk"] = torch.topk(scores, model.config.num_queries, dim=1)[1]
        tensors["logits"] = output.logits
        tensors["pred_boxes"] = output.pred_boxes
        yield case, tensors, took, {"texts": texts}
        print_detector(output, scores, best)


def print_detector(output, scores: torch.Tensor, best: torch.Tensor) -> None:
    """Prints whether the outputs are spread, not saturated, and different between queries."""
    for row in range(len(best)):
        # All cells that are masked or too close to the edge have the same score. The reference's choice among them would be
        # arbitrary.
        values, counts = scores[row].unique(return_counts=True)
        common = values[counts.argmax()] if counts.max() > 1 else torch.tensor(-math.inf)
        print(
            f"  picture {row}: scores of the {scores.shape[1]} cells std {scores[row].std():.3g}; the best 900 from "
            f"{best[row, 0]:.3g} to {best[row, -2]:.3g}, smallest gap {(best[row, :-1] - best[row, 1:]).min():.1e}, "
            f"{counts.max()} cells share {common:.3g}"
        )
        if common >= best[row, -1]:
            raise ValueError("masked cells are among the best, and their order is arbitrary: choose another seed")
        logits = output.logits[row][:, torch.isfinite(output.logits[row]).all(0)]
        probability = logits.sigmoid()
        boxes = output.pred_boxes[row]
        top = probability.max(-1)[0]
        print(
            f"  picture {row}: {logits.shape[1]} tokens; logits std {logits.std():.3g}, between queries "
            f"{logits.std(0).mean():.3g}, between tokens {logits.std(1).mean():.3g}; probabilities below 0.01 "
            f"{(probability < 0.01).float().mean():.0%}, above 0.99 {(probability > 0.99).float().mean():.0%}; best "
            f"token of a query {top.min():.3g} .. {top.median():.3g} .. {top.max():.3g}; boxes mean "
            f"{rounded(boxes.mean(0))} std {rounded(boxes.std(0))}"
        )


@dataclass
class Segmenter:
    """The reference of a segmenter. It processes one picture at a time."""

    parameters: int
    # picture -> pixel values (1 3 H W)
    preprocess: Callable[[Image.Image], torch.Tensor]
    # picture -> its (height, width) in the square to which the prompts belong
    input_size: Callable[[Image.Image], tuple[int, int]]
    # pixel values -> the encoded image for `predict`, and tensors to write
    encode: Callable[[torch.Tensor], tuple[Any, dict[str, torch.Tensor]]]
    # encoded image, keyword multimask and prompts -> low_res_masks (1 N M h w), iou_scores (1 N M) and others
    predict: Callable[..., dict[str, torch.Tensor]]


def run_segmenter(segmenter: Segmenter, out: Path) -> Iterator:
    """Yields the number of parameters, and then (name, tensors, seconds, notes) for each case.

    The reference processes one picture at a time, also in the batch: all pictures become the same square, so that a batch gives
    the same results, and global attention would need memory for all of them at once.
    """
    yield segmenter.parameters
    known = {}
    for case, pictures in CASES.items():
        images = photographs(out, case)
        original = torch.tensor([[image.height, image.width] for image in images])
        reshaped = torch.tensor([segmenter.input_size(image) for image in images])
        pixel_values = torch.cat([segmenter.preprocess(image) for image in images])
        tensors = {"original_size": original, "reshaped_input_size": reshaped, "pixel_values": pixel_values}
        # the factor from (x, y) in the original to the model's input
        scale = (reshaped / original).flip(1).float()
        size = original.flip(1).float()
        boxes = torch.tensor(BOXES) * size.repeat(1, 2)[:, None]
        points = torch.tensor(POINTS)[None] * size[:, None, None]
        tensors |= {
            "original_input_boxes": boxes,
            "original_input_points": points,
            "input_boxes": boxes * scale.repeat(1, 2)[:, None],
            "input_points": points * scale[:, None, None],
            "input_labels": torch.tensor(LABELS).expand(len(images), 1, -1),
        }
        started = time.monotonic()
        rows = [predict_picture(segmenter, tensors, row) for row in range(len(images))]
        took = time.monotonic() - started
        tensors |= {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
        yield case, tensors, took, {"photographs": pictures}
        print_segmenter(case, tensors, known)


def predict_picture(segmenter: Segmenter, tensors: dict, row: int) -> dict[str, torch.Tensor]:
    """The results for one picture: its embeddings, one mask for each box, and three for the object with points."""
    encoded, results = segmenter.encode(tensors["pixel_values"][row : row + 1])
    prompts = {name: tensors[f"input_{name}"][row : row + 1].clone() for name in ("boxes", "points", "labels")}
    output = segmenter.predict(encoded, multimask=False, boxes=prompts["boxes"])
    results |= {f"box.{key}": value[:, :, 0] for key, value in output.items()}
    output = segmenter.predict(encoded, multimask=True, points=prompts["points"], labels=prompts["labels"])
    return results | {f"points.{key}": value[:, 0] for key, value in output.items()}


def print_segmenter(case: str, tensors: dict, known: dict) -> None:
    """Prints whether the outputs are different between positions, and between pictures."""
    embeddings, masks = tensors["image_embeddings"], tensors["box.low_res_masks"]
    positions = embeddings.std((2, 3)).mean() / embeddings.std()
    print(f"  embeddings: std over positions relative to that of all numbers {positions:.2f}")
    print(f"  box masks: inside {rounded((masks > 0).float().mean((2, 3)).flatten())}")
    for other, theirs in known.items():
        if len(embeddings) == 1:
            difference = (embeddings - theirs).std() / theirs.std()
            print(f"  embeddings: differ from {other}'s by {difference:.2f} of their scale")
    if len(embeddings) == 1:
        known[case] = embeddings


def input_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of the picture in SAM's square of 1024 pixels."""
    return SamImageProcessor()._get_preprocess_shape((image.height, image.width), 1024)


def load_sam(folder: Path) -> Segmenter:
    """transformers' SAM."""
    model, loading = SamModel.from_pretrained(folder, output_loading_info=True)
    require_complete(loading)
    processor = SamImageProcessor.from_pretrained(folder)

    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, dict]:
        embeddings = model.get_image_embeddings(pixels)
        return embeddings, {"image_embeddings": embeddings}

    def predict(embeddings, multimask, boxes=None, points=None, labels=None):
        output = model(
            image_embeddings=embeddings,
            input_boxes=boxes,
            input_points=points,
            input_labels=labels,
            multimask_output=multimask,
        )
        return {"low_res_masks": output.pred_masks, "iou_scores": output.iou_scores}

    return Segmenter(
        parameters=count_parameters(model),
        preprocess=lambda image: processor(image, return_tensors="pt")["pixel_values"],
        input_size=input_size,
        encode=encode,
        predict=predict,
    )


def count_parameters(model: nn.Module) -> int:
    """The number of parameters, without buffers."""
    return sum(parameter.numel() for parameter in model.parameters())


def load_mobile_sam(folder: Path) -> Segmenter:
    """MobileSAM's original code."""
    from mobile_sam import sam_model_registry

    model = sam_model_registry["vit_t"](checkpoint=folder / "mobile_sam.pt")
    # The registry calls eval() before it loads the checkpoint. eval() copies the attention biases into a table, which loading
    # does not update: without a second call, the biases of the file would not be used.
    model.eval()

    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, dict]:
        embeddings = model.image_encoder(pixels)
        return embeddings, {"image_embeddings": embeddings}

    def predict(embeddings, multimask, boxes=None, points=None, labels=None):
        masks, scores = model.mask_decoder(
            **original_inputs(model, embeddings, boxes, points, labels), multimask_output=multimask
        )
        return {"low_res_masks": masks[None], "iou_scores": scores[None]}

    return Segmenter(
        parameters=count_parameters(model),
        preprocess=lambda image: original_preprocess(model, image),
        input_size=input_size,
        encode=encode,
        predict=predict,
    )


def original_preprocess(model: nn.Module, image: Image.Image) -> torch.Tensor:
    """The pixel values by the original code of SAM, which its successors share."""
    import numpy
    from mobile_sam.utils.transforms import ResizeLongestSide

    pixels = ResizeLongestSide(model.image_encoder.img_size).apply_image(numpy.asarray(image))
    return model.preprocess(torch.as_tensor(pixels).permute(2, 0, 1)[None])


def original_inputs(model: nn.Module, embeddings: torch.Tensor, boxes, points, labels) -> dict[str, torch.Tensor]:
    """The arguments of the original mask decoder for one image, by the original prompt encoder."""
    sparse, dense = model.prompt_encoder(
        points=None if points is None else (points[0], labels[0]),
        boxes=None if boxes is None else boxes[0],
        masks=None,
    )
    return {
        "image_embeddings": embeddings,
        "image_pe": model.prompt_encoder.get_dense_pe(),
        "sparse_prompt_embeddings": sparse,
        "dense_prompt_embeddings": dense,
    }


def require_complete(loading: dict) -> None:
    """Checks that the file has every tensor of the model, and no others."""
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading[problem]:
            raise ValueError(f"{problem}: {loading[problem]}")


# compare


def compare(out: Path, names: list[str], precision: str) -> None:
    """Runs groundling on the same files and prints tables. A difference above the tolerance is an error."""
    binary, tests = build()
    rows, failed = [], []
    for name in names:
        folders = [folder for folder in (name, *copies(name)) if (out / folder).is_dir()]
        for folder in folders:
            environment = os.environ | {
                "GROUNDLING_FULL_SIZE": str(out.resolve()),
                "GROUNDLING_FULL_SIZE_MODEL": folder,
                "GROUNDLING_FULL_SIZE_PRECISION": precision,
            }
            run = subprocess.run([tests, "full_size", "--ignored", "--nocapture"], env=environment)
            if run.returncode:
                failed.append(folder)
        results = [
            json.loads((out / "results" / f"{folder}.json").read_text()) for folder in folders if folder not in failed
        ]
        rows += [(result, weights_mib(out / result["name"])) for result in results]
        if len({result["digest"] for result in results}) > 1:
            failed.append(f"{name}: its copies give different numbers")
    print(f"\n{'model':<30} {'stage':<18} {'largest difference':>18}   of the stage's scale")
    for result, _ in rows:
        for stage, difference in result["differences"].items():
            print(f"{result['name']:<30} {stage:<18} {difference:>18.1e}")
    print(f"\n{'model':<30} {'weights':>9} {'loaded in':>10} {'peak then':>10} {'digest of the output':>22}")
    for result, weights in rows:
        seconds, peak = result["load_seconds"], result["peak_mib_after_load"]
        print(f"{result['name']:<30} {weights:>5.0f} MiB {seconds:>8.1f} s {peak:>6} MiB {result['digest']:>22}")
    if set(PAIR) <= set(names):
        failed += peak_of_process(out, binary)
    if failed:
        raise SystemExit("failed: " + ", ".join(failed))
    print("\nall differences are within their tolerances; all copies of a model give the same numbers, bit by bit")


# models of the measured `groundling predict`; the wide photograph becomes 800 x 1333
PAIR = ("grounding-dino-tiny", "sam-vit-base")


def copies(name: str) -> tuple[str, ...]:
    """The folders with the same weights in another format."""
    return (f"{name}-original", f"{name}-safetensors")


def build() -> tuple[str, str]:
    """Builds groundling and its reference tests. Returns the paths of both."""
    command = ["cargo", "test", "--release", "--no-run", "--message-format=json-render-diagnostics"]
    lines = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()
    artefacts = [json.loads(line) for line in lines if line.startswith("{")]
    programs = {item["target"]["name"]: item["executable"] for item in artefacts if item.get("executable")}
    subprocess.run(["cargo", "build", "--release"], check=True)
    return str(Path(programs["reference"]).parent.parent / "groundling"), programs["reference"]


def weights_mib(folder: Path) -> float:
    """The size of the weights in a folder."""
    return max(file.stat().st_size for file in folder.iterdir() if file.is_file()) / 2**20


def peak_of_process(out: Path, binary: str) -> list[str]:
    """Measures the peak memory of `groundling predict` with both models of PAIR. Returns failures."""
    detector, segmenter = (out / name for name in PAIR)
    weights = sum(weights_mib(folder) for folder in (detector, segmenter))
    limit = 1.5 * weights + 1536
    command = [binary, "predict", str(out / "photographs" / "wide.png"), "--prompt", "a temple. a roof."]
    command += ["--detector", str(detector), "--segmenter", str(segmenter), "--max-detections", "20"]
    started = time.monotonic()
    # a process in between, so that the peak is not that of another child
    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    run = subprocess.run([sys.executable, "-c", code, *command], check=True, text=True, stdout=subprocess.PIPE)
    peak = int(run.stdout) / 1024
    seconds = time.monotonic() - started
    print(
        f"\npredict at 800 x 1333 with {' and '.join(PAIR)}: peak {peak:.0f} MiB, limit {limit:.0f} MiB "
        f"(1.5 x {weights:.0f} MiB of weights + 1.5 GiB), {seconds:.0f} s"
    )
    return ["peak memory"] if peak > limit else []


def in_process(function: Callable, *arguments) -> None:
    """Runs `function` in its own process, which releases its memory at the end and has its own peak."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} {arguments[0]} failed")


def main(names: tuple[str, ...], description: str, make: Callable, run: Callable) -> None:
    """Runs the steps of the command line. `make` writes a model, `run` yields its results."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help=f"where to write (default: {OUT})")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--precision", choices=("f32", "bf16"), default="f32", help="precision of groundling (default: f32)"
    )
    parser.add_argument("--step", choices=("make", "reference", "compare", "all"), default="all")
    arguments = parser.parse_args()
    steps = ("make", "reference", "compare") if arguments.step == "all" else (arguments.step,)
    if "reference" in steps:
        write_photographs(arguments.out)
    for name in arguments.only:
        started = time.monotonic()
        if "make" in steps:
            in_process(make, name, arguments.out)
            print(f"{name}: made in {time.monotonic() - started:.0f} s", flush=True)
        if "reference" in steps:
            in_process(reference, name, arguments.out, run)
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    if "compare" in steps:
        compare(arguments.out, list(arguments.only), arguments.precision)


if __name__ == "__main__":
    main(NAMES, __doc__, make, run)
