"""Makes what the comparison needs if it is missing: a Python environment, checkpoints, ONNX files, programs."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
# everything is written to this folder, which git ignores
FOLDER = REPOSITORY / "target" / "compare"
REQUIREMENTS = HERE / "requirements.txt"


@dataclass
class Prepared:
    """Paths of what was prepared; `None` if it was not requested."""

    models: Path
    groundling: Path
    python: Path | None = None
    onnx: Path | None = None
    candle: Path | None = None


def environment() -> Path:
    """The interpreter of an environment with the pinned packages; the environment is rebuilt when the pins change."""
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
    """Builds groundling from this working copy."""
    subprocess.run(["cargo", "build", "--release"], check=True, cwd=REPOSITORY)
    return REPOSITORY / "target" / "release" / "groundling"


def candle() -> Path:
    """Builds the program that runs candle-transformers, which is a package of its own."""
    target = FOLDER / "candle"
    command = ["cargo", "build", "--release", "--locked", "--target-dir", target]
    subprocess.run(command, check=True, cwd=HERE / "candle")
    return target / "release" / "candle-as-it-comes"


def prepare(binary: Path | None, engines: list[str]) -> Prepared:
    """Prepares everything; `binary` is a groundling that was built elsewhere."""
    python = environment()
    models = checkpoints(python)
    return Prepared(
        python=python,
        models=models,
        onnx=onnx_files(python, models),
        groundling=binary or groundling(),
        candle=candle() if "candle" in engines else None,
    )
