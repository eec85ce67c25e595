"""Makes models of full size with random weights, and a picture, on a machine that has only torch and transformers.

    python models.py FOLDER

writes FOLDER/grounding-dino-tiny, sam-vit-base, mobile-sam, sam2.1-hiera-tiny, sam-hq-vit-base and efficientvit-sam-l1 in formats
that groundling reads, and FOLDER/picture.ppm.
The time does not depend on the values of the weights. `lively_weights` gives varied results, so that differences show.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Sam2VideoConfig,
    Sam2VideoModel,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamModel,
    SwinConfig,
)

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path += [str(REPOSITORY / "tests" / "reference"), str(REPOSITORY / "benches" / "compare")]

import mobile_sam  # noqa: E402
from lively_weights import redraw, temper  # noqa: E402
from sizes import DETECTOR_SIZE  # noqa: E402

DETECTOR, SAM, MOBILE_SAM = "grounding-dino-tiny", "sam-vit-base", "mobile-sam"
SAM2, SAM_HQ, EFFICIENTVIT_SAM = "sam2.1-hiera-tiny", "sam-hq-vit-base", "efficientvit-sam-l1"
# the names and shapes of the tensors of efficientvit_sam_l1.pt that inference uses
SHAPES = Path(__file__).with_name("efficientvit_sam_l1.json")
PICTURE = "picture.ppm"
# as published
PROCESSORS = {
    DETECTOR: {
        "image_processor_type": "GroundingDinoImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 800, "longest_edge": 1333},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "do_pad": True,
    },
    SAM: {
        "image_processor_type": "SamImageProcessor",
        "do_resize": True,
        "size": {"longest_edge": 1024},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "do_pad": True,
        "pad_size": {"height": 1024, "width": 1024},
    },
    SAM2: {
        "image_processor_type": "Sam2ImageProcessorFast",
        "do_resize": True,
        "size": {"height": 1024, "width": 1024},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "mask_size": {"height": 256, "width": 256},
    },
}
PROCESSORS[SAM_HQ] = PROCESSORS[SAM]


def detector() -> GroundingDinoForObjectDetection:
    """Grounding DINO in its published configuration."""
    swin = SwinConfig(
        image_size=224,
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_features=["stage2", "stage3", "stage4"],
    )
    # without the custom kernel, which would be downloaded from the hub
    config = GroundingDinoConfig(backbone_config=swin, text_config=BertConfig(), disable_custom_kernels=True)
    model = GroundingDinoForObjectDetection(config)
    redraw(model, 0)
    temper(model)
    # otherwise all scores on this picture would be nearly 1; the order of the tokens does not change
    for norm in (model.model.enc_output_norm, model.model.decoder.layer_norm):
        norm.weight.data *= 0.2
        norm.bias.data *= 0.2
    return model.eval()


def sam() -> SamModel:
    """SAM ViT-B in its published configuration."""
    model = SamModel(SamConfig())
    redraw(model, 0)
    return model.eval()


def sam2() -> Sam2VideoModel:
    """SAM 2.1 tiny in its published configuration, which is that of a video model."""
    model = Sam2VideoModel(Sam2VideoConfig(vision_config={"backbone_config": {}}))
    redraw(model, 0)
    return model.eval()


def sam_hq() -> SamHQModel:
    """SAM-HQ ViT-B in its published configuration."""
    model = SamHQModel(SamHQConfig())
    redraw(model, 0)
    return model.eval()


def save(model: nn.Module, folder: Path) -> None:
    """Writes a folder in the published format, with every field of the configuration."""
    model.save_pretrained(folder)
    config = json.loads(model.config.to_json_string(use_diff=False))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[folder.name], indent=2) + "\n")


def save_mobile_sam(folder: Path) -> None:
    """Writes a single file with the authors' tensor names."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(mobile_sam.weights(), folder / "mobile_sam.safetensors", metadata={"format": "pt"})


def save_efficientvit_sam(folder: Path) -> None:
    """Writes a single file with the authors' tensor names."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = json.loads(SHAPES.read_text())
    tensors = {name: mobile_sam.draw(name, tuple(shape)) for name, shape in shapes.items()}
    save_file(tensors, folder / "efficientvit_sam_l1.safetensors", metadata={"format": "pt"})


def save_picture(file: Path) -> None:
    """Writes a picture of coloured shapes on a gradient with noise, in the size of the detector's input."""
    height, width = DETECTOR_SIZE
    random = numpy.random.default_rng(0)
    y, x = numpy.mgrid[:height, :width].astype(numpy.float32)
    picture = numpy.stack([255 * x / width, 255 * y / height, 255 - 255 * x / width], axis=2)
    for _ in range(24):
        row, column = random.uniform(0, height), random.uniform(0, width)
        side = random.uniform(20, 140)
        colour = random.uniform(0, 255, 3)
        inside = (
            (x - column) ** 2 + (y - row) ** 2 < side**2
            if random.random() < 0.5
            else (abs(x - column) < side) & (abs(y - row) < side / 2)
        )
        picture[inside] = colour
    picture += random.normal(0, 8, picture.shape)
    pixels = picture.clip(0, 255).astype(numpy.uint8)
    file.write_bytes(b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes())


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_picture(folder / PICTURE)
    makers = {
        DETECTOR: lambda target: save(detector(), target),
        SAM: lambda target: save(sam(), target),
        MOBILE_SAM: save_mobile_sam,
        SAM2: lambda target: save(sam2(), target),
        SAM_HQ: lambda target: save(sam_hq(), target),
        EFFICIENTVIT_SAM: save_efficientvit_sam,
    }

    def make(name: str) -> None:
        started = time.monotonic()
        makers[name](folder / name)
        print(f"{name}: {time.monotonic() - started:.1f} s", flush=True)

    with ThreadPoolExecutor() as pool:
        list(pool.map(make, makers))


if __name__ == "__main__":
    with torch.no_grad():
        main(Path(sys.argv[1]))
