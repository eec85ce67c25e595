"""The work items of the comparison, for scripts that run without torch."""

from collections.abc import Iterable

from sizes import BOXES

# name -> title, unit
WORK = {
    "grounding-dino-tiny": ("Grounding DINO tiny, 800x1066, 8 tokens, pixels to boxes", "s"),
    "grounding-dino-base": ("Grounding DINO base, 800x1066, 8 tokens, pixels to boxes", "s"),
    "sam-vit-base": ("SAM ViT-B, image encoder", "s"),
    "mobile-sam": ("MobileSAM, image encoder", "s"),
    "masks-1": ("1 box to a mask of 1920x1280", "s"),
    "masks-20": ("20 boxes to masks of 1920x1280", "s"),
    "memory": ("Peak memory: detector (tiny), MobileSAM, 20 boxes", "MiB"),
    "start": ("Start of the process until both models are loaded", "s"),
}
# the newer families, which are measured only if they are named
FAMILIES = {
    "mm-grounding-dino-tiny": ("MM Grounding DINO tiny, 800x1066, 8 tokens, pixels to boxes", "s"),
    "sam2.1-hiera-tiny": ("SAM 2.1 Hiera tiny, image encoder", "s"),
    "sam2.1-hiera-base-plus": ("SAM 2.1 Hiera base+, image encoder", "s"),
    "efficientvit-sam-l0": ("EfficientViT-SAM L0, image encoder", "s"),
    "efficientvit-sam-xl0": ("EfficientViT-SAM XL0, image encoder", "s"),
    "light-hq-sam": ("Light HQ-SAM, image encoder and HQ features", "s"),
    "sam-hq-vit-base": ("HQ-SAM ViT-B, image encoder and HQ features", "s"),
    "hq-masks-1": ("Light HQ-SAM, 1 box to a mask of 1920x1280", "s"),
}
# what candle-transformers can run
CANDLE = ("sam-vit-base", "mobile-sam")
# masks -> the number of boxes
MASKS = {"masks-1": 1, f"masks-{BOXES}": BOXES, "hq-masks-1": 1}
HQ_MASKS = "hq-masks-1"
# the checkpoint whose mask decoder it runs
LIGHT_HQ_SAM = "light-hq-sam"
FAMILY_MODELS = tuple(name for name in FAMILIES if name != HQ_MASKS)


def is_detector(work: str) -> bool:
    """Whether the item is one pass of a detector."""
    return "grounding-dino" in work


def family_checkpoints(works: Iterable[str]) -> list[str]:
    """The checkpoints of the newer families that some items need."""
    return list(dict.fromkeys(LIGHT_HQ_SAM if work == HQ_MASKS else work for work in works if work in FAMILIES))
