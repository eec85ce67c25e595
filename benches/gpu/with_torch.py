"""Measures how long torch takes for the same models on the same device.

    python with_torch.py FOLDER DEVICE RUNS OUT.json

times Grounding DINO and SAM's image encoder, with the models that `models.py` wrote to FOLDER.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn
from transformers import GroundingDinoForObjectDetection, SamModel

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "benches" / "compare"))

from inputs import detector_inputs, noise  # noqa: E402
from models import DETECTOR, SAM  # noqa: E402
from sizes import SEGMENTER_SIDE  # noqa: E402

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
WARM_UP = 3


def synchronize(device: str) -> None:
    """Waits for the device."""
    if device != "cpu":
        torch.cuda.synchronize()


def load(kind: type, folder: Path, dtype: torch.dtype, device: str) -> tuple[nn.Module, str]:
    """Loads a model, with torch's own attention if it supports that; also returns the name of the attention."""
    for attention in ({"attn_implementation": "sdpa"}, {}):
        try:
            model = kind.from_pretrained(folder, dtype=dtype, **attention).eval().to(device)
            return model, attention.get("attn_implementation", "default")
        except (ValueError, ImportError) as error:
            print(f"{folder.name}: {attention}: {str(error)[:200]}", file=sys.stderr)
    raise SystemExit(f"cannot load {folder.name}")


def seconds(run: Callable, device: str, runs: int) -> list[float]:
    """The times of `runs` runs, after some untimed runs."""
    for _ in range(WARM_UP if device != "cpu" else 0):
        run()
    synchronize(device)
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return times


def measure(name: str, folder: Path, precision: str, device: str, runs: int, casts: bool) -> dict:
    """Measures one model in one precision; with `casts` the weights stay in float32, and torch uses autocast."""
    dtype = DTYPES[precision]
    kind = GroundingDinoForObjectDetection if name == DETECTOR else SamModel
    model, attention = load(kind, folder / name, torch.float32 if casts else dtype, device)
    if name == DETECTOR:
        inputs = {key: torch.from_numpy(array).to(device) for key, array in detector_inputs().items()}
    else:
        model = model.vision_encoder
        inputs = {"pixel_values": torch.from_numpy(noise(1, 3, SEGMENTER_SIDE, SEGMENTER_SIDE)).to(device)}
    if not casts:
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    with torch.autocast(device, dtype) if casts else nullcontext():
        times = seconds(lambda: model(**inputs), device, runs)
    peak = torch.cuda.max_memory_allocated() / 2**20 if device != "cpu" else None
    return {"attention": attention, "median_s": statistics.median(times), "samples_s": times, "peak_mib": peak}


def measure_all(folder: Path, device: str, runs: int, out: Path) -> None:
    """Measures everything and writes the results after every step; a failed step has an error instead of times."""
    results = {"torch": torch.__version__, "device": torch.cuda.get_device_name() if device != "cpu" else "cpu"}
    for precision in DTYPES:
        for name in (DETECTOR, SAM):
            for casts in (False, True) if precision != "f32" else (False,):
                key = f"{name} {precision}{' autocast' if casts else ''}"
                try:
                    results[key] = measure(name, folder, precision, device, runs, casts)
                except Exception as error:  # another version of a library may raise anything
                    results[key] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
                print(key, results[key].get("median_s", results[key].get("error")), flush=True)
                out.write_text(json.dumps(results, indent=1))
    if device != "cpu":
        torch.backends.cuda.matmul.allow_tf32 = True
        for name in (DETECTOR, SAM):
            results[f"{name} tf32"] = measure(name, folder, "f32", device, runs, casts=False)
            print(f"{name} tf32", results[f"{name} tf32"]["median_s"], flush=True)
    out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    models, device, runs, out = sys.argv[1:]
    with torch.inference_mode():
        measure_all(Path(models), device, int(runs), Path(out))
