"""The models of the comparison with random weights: as torch modules, and as checkpoints in their published formats.

    python models.py FOLDER [NAME ...]

writes one folder per model: those of the default work items, or the named ones, of families.py too. Published weights
are not needed: the time does not depend on the values of the weights, as long as all numbers stay in the usual range
(no infinities, no denormal numbers). `lively_weights.redraw` ensures this.
"""

import json
import shutil
import sys
import warnings
import zlib
from pathlib import Path

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    SamConfig,
    SamImageProcessor,
    SamModel,
    SwinConfig,
)

from works import FAMILY_MODELS

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests" / "reference"))

from lively_weights import redraw  # noqa: E402

VOCABULARY = REPOSITORY / "models" / "bert-base-uncased" / "vocab.txt"
SEED = 0
# name -> the differences to Swin-T
DETECTORS = {
    "grounding-dino-tiny": {},
    "grounding-dino-base": {
        "image_size": 384,
        "embed_dim": 128,
        "depths": [2, 2, 18, 2],
        "num_heads": [4, 8, 16, 32],
        "window_size": 12,
    },
}
SAM = "sam-vit-base"
MOBILE_SAM = "mobile-sam"
NAMES = ("grounding-dino-tiny", SAM, MOBILE_SAM, "grounding-dino-base")


def detector(name: str) -> GroundingDinoForObjectDetection:
    """Grounding DINO in its published configuration."""
    swin = {
        "image_size": 224,
        "embed_dim": 96,
        "depths": [2, 2, 6, 2],
        "num_heads": [3, 6, 12, 24],
        "window_size": 7,
        "out_features": ["stage2", "stage3", "stage4"],
    }
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(**(swin | DETECTORS[name])),
        text_config=BertConfig(),
        # use torch's own operations: the CUDA kernel does not run on a CPU
        disable_custom_kernels=True,
    )
    model = GroundingDinoForObjectDetection(config)
    redraw(model, SEED)
    return model.eval()


def sam() -> SamModel:
    """SAM ViT-B in its published configuration."""
    model = SamModel(SamConfig())
    redraw(model, SEED)
    return model.eval()


def mobile_sam() -> nn.Module:
    """MobileSAM from its own code."""
    # its table of positions is a buffer that the constructor fills with random values
    torch.manual_seed(SEED)
    model = build_mobile_sam()
    redraw(model, SEED)
    for name, module in model.named_modules():
        # `redraw` does not handle these two norms, and no buffers
        if type(module).__name__ in ("BatchNorm2d", "LayerNorm2d"):
            module.weight.data = 1 + 0.1 * noise(f"{name}.weight", module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * noise(f"{name}.running_mean", module.running_mean))
            module.running_var.copy_((0.2 * noise(f"{name}.running_var", module.running_var)).exp())
    # copies the attention biases into the tables that inference uses
    return model.train().eval()


def build_mobile_sam() -> nn.Module:
    """MobileSAM as its package builds it."""
    with warnings.catch_warnings():
        # timm warns that it has moved modules that MobileSAM imports
        warnings.simplefilter("ignore")
        from mobile_sam import sam_model_registry
    return sam_model_registry["vit_t"]()


def noise(name: str, like: torch.Tensor) -> torch.Tensor:
    """Normal noise, seeded by the tensor's name."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{SEED} {name}".encode()))
    return torch.randn(like.shape, generator=generator)


def load(name: str, folder: Path) -> nn.Module:
    """Loads a model from its checkpoint, for inference in float32."""
    if name in FAMILY_MODELS:
        # imports more packages, whose time the work item `start` must not include
        import families

        return families.load(name, folder)
    if name == MOBILE_SAM:
        model = build_mobile_sam()
        model.load_state_dict(torch.load(folder / name / "mobile_sam.pt", weights_only=True))
        # eval() was called before the weights were loaded: compute the tables of attention biases again
        return model.train().eval()
    kind = SamModel if name == SAM else GroundingDinoForObjectDetection
    return kind.from_pretrained(folder / name, dtype=torch.float32).eval()


def save(name: str, folder: Path) -> None:
    """Writes one checkpoint, unless its folder exists; an existing folder is complete."""
    target = folder / name
    if target.is_dir():
        return
    partial = folder / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if name in FAMILY_MODELS:
        import families

        families.save(name, partial)
    elif name == MOBILE_SAM:
        torch.save(mobile_sam().state_dict(), partial / "mobile_sam.pt")
    elif name == SAM:
        model = sam()
        model.save_pretrained(partial)
        # as in the published file: with every field
        config = json.loads(model.config.to_json_string(use_diff=False))
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        SamImageProcessor().save_pretrained(partial)
    else:
        detector(name).save_pretrained(partial)
        GroundingDinoImageProcessor().save_pretrained(partial)
        BertTokenizerFast(vocab_file=str(VOCABULARY)).backend_tokenizer.save(str(partial / "tokenizer.json"))
    for file in partial.iterdir():
        file.chmod(0o644)
    partial.rename(target)
    print(f"made {target}", flush=True)


if __name__ == "__main__":
    for wanted in sys.argv[2:] or NAMES:
        save(wanted, Path(sys.argv[1]))
