"""What the comparison needs, made where it is missing: a Python environment, checkpoints, ONNX files, programs."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
# everything that is made lies here, out of git
FOLDER = REPOSITORY / "target" / "compare"
REQUIREMENTS = HERE / "requirements.txt"


@dataclass
class Prepared:
    """Where everything is; what is `None` was not asked for."""

    models: Path
    groundling: Path
    python: Path | None = None
    onnx: Path | None = None
    candle: Path | None = None


def environment() -> Path:
    """The interpreter of an environment with the pinned packages; made anew when the pins change."""
    folder = FOLDER / "venv"
    python, installed = folder / "bin" / "python", folder / "requirements.txt"
    if not installed.is_file() or installed.read_text() != REQUIREMENTS.read_text():
        print(f"making the Python environment {folder}: about 6 GB, once", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS]
        subprocess.run(command, check=True)
        installed.write_text(REQUIREMENTS.read_text())
    return python


def checkpoints(python: Path) -> Path:
    """The folder of checkpoints with random weights."""
    folder = FOLDER / "models"
    subprocess.run([python, HERE / "models.py", folder], check=True, stdout=sys.stderr)
    return folder


def onnx_files(python: Path, models: Path) -> Path:
    """The folder of the same models as ONNX files."""
    folder = FOLDER / "onnx"
    subprocess.run([python, HERE / "export.py", models, folder], check=True, stdout=sys.stderr)
    return folder


def groundling() -> Path:
    """groundling, built from this working copy."""
    subprocess.run(["cargo", "build", "--release"], check=True, cwd=REPOSITORY)
    return REPOSITORY / "target" / "release" / "groundling"


def candle() -> Path:
    """The program around candle-transformers, a package of its own."""
    target = FOLDER / "candle"
    command = ["cargo", "build", "--release", "--locked", "--target-dir", target]
    subprocess.run(command, check=True, cwd=HERE / "candle")
    return target / "release" / "candle-as-it-comes"


def prepare(binary: Path | None, engines: list[str]) -> Prepared:
    """All of it; `binary` is a groundling that was built elsewhere."""
    python = environment()
    models = checkpoints(python)
    return Prepared(
        python=python,
        models=models,
        onnx=onnx_files(python, models),
        groundling=binary or groundling(),
        candle=candle() if "candle" in engines else None,
    )
