"""The machine and the versions of a measurement."""

import json
import os
import platform
import subprocess
import tomllib
from pathlib import Path

from prepare import HERE, REPOSITORY, Prepared

# they determine the speed of matrix products
INSTRUCTION_SETS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16", "i8mm")
PACKAGES = (
    "onnxruntime",
    "torch",
    "transformers",
    "mobilesam-mirror",
    "segment-anything-hq",
    "efficientsam",
    "timm",
    "onnx",
    "onnxscript",
    "numpy",
)


def cpu() -> dict:
    """The processor's name, which of the instruction sets above it has, and the cores that this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    fields = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", "")).split()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": fields.get("model name") or platform.processor() or platform.machine(),
        "family": f"family {fields['cpu family']}, model {fields['model']}" if "cpu family" in fields else None,
        "instruction_sets": [flag for flag in INSTRUCTION_SETS if flag in flags],
        "cores": cores,
    }


def versions(prepared: Prepared) -> dict[str, str]:
    """The versions of everything that is compared."""
    code = (
        "import importlib.metadata as m, json, platform, sys; "
        "print(json.dumps({'python': platform.python_version()} | {n: m.version(n) for n in sys.argv[1:]}))"
    )
    found = json.loads(output([prepared.python, "-c", code, *PACKAGES]))
    lock = HERE / "candle" / "Cargo.lock"
    if lock.is_file():
        packages = tomllib.loads(lock.read_text())["package"]
        found |= {p["name"]: p["version"] for p in packages if p["name"] in ("candle-core", "candle-transformers")}
    return found | own_versions(prepared.groundling)


def own_versions(groundling: Path) -> dict[str, str]:
    """The versions of groundling and its compiler."""
    return {
        "rustc": output(["rustc", "--version"]).removeprefix("rustc "),
        "groundling": output([groundling, "--version"]).removeprefix("groundling "),
    }


def commit() -> str:
    """The commit of the working copy, marked as dirty if there are changes."""
    try:
        return output(["git", "describe", "--always", "--dirty", "--abbrev=12", "--match=NONE"])
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def output(command: list) -> str:
    """The output of a command."""
    return subprocess.run(command, cwd=REPOSITORY, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()
