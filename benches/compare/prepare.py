"""Makes what the comparison needs if it is missing: a Python environment, checkpoints, ONNX files, programs."""

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from works import CANDLE, FAMILIES, WORK, family_checkpoints

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
# everything is written to this folder unless another one is named; git ignores it
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


def environment(folder: Path = FOLDER) -> Path:
    """The interpreter of an environment with the pinned packages; the environment is rebuilt when the pins change."""
    folder = folder / "venv"
    python, installed = folder / "bin" / "python", folder / "requirements.txt"
    if folder.exists() and not installed.is_file():
        raise SystemExit(f"{folder} was not made by this script: remove it, or name another --folder")
    if not installed.is_file() or installed.read_text() != REQUIREMENTS.read_text():
        print(f"making the Python environment {folder}: about 6 GB, once", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        # marks the environment as made by this script, and as incomplete
        installed.touch()
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS]
        subprocess.run(command, check=True)
        installed.write_text(REQUIREMENTS.read_text())
    return python


def checkpoints(python: Path, folder: Path = FOLDER, works: Iterable[str] = WORK) -> Path:
    """The folder of checkpoints with random weights: all of the default work items, and those of the newer families."""
    models = folder / "models"
    for names in wanted(works, family_checkpoints(works)):
        subprocess.run([python, HERE / "models.py", models, *names], check=True, stdout=sys.stderr)
    return models


def onnx_files(python: Path, models: Path, folder: Path, works: Iterable[str]) -> Path:
    """The folder of the same models as ONNX files."""
    files = folder / "onnx"
    for names in wanted(works, [work for work in works if work in FAMILIES]):
        subprocess.run([python, HERE / "export.py", models, files, *names], check=True, stdout=sys.stderr)
    return files


def wanted(works: Iterable[str], families: list[str]) -> list[list[str]]:
    """The arguments of the calls that make the files: none for all of the default work items, or these families."""
    return ([[]] if any(work in WORK for work in works) else []) + ([families] if families else [])


def groundling() -> Path:
    """Builds groundling from this working copy."""
    subprocess.run(["cargo", "build", "--release"], check=True, cwd=REPOSITORY)
    return REPOSITORY / "target" / "release" / "groundling"


def candle(folder: Path) -> Path:
    """Builds the program that runs candle-transformers, which is a package of its own."""
    target = folder / "candle"
    command = ["cargo", "build", "--release", "--locked", "--target-dir", target]
    subprocess.run(command, check=True, cwd=HERE / "candle")
    return target / "release" / "candle-as-it-comes"


def prepare(folder: Path, works: list[str], engines: list[str], binary: Path | None, python: Path | None) -> Prepared:
    """Prepares everything in `folder`; `binary` and `python` are a groundling and an environment from elsewhere."""
    folder = folder.resolve()
    python = python.absolute() if python else environment(folder)
    models = checkpoints(python, folder, works)
    return Prepared(
        python=python,
        models=models,
        onnx=onnx_files(python, models, folder, works),
        groundling=binary.absolute() if binary else groundling(),
        candle=candle(folder) if "candle" in engines and any(work in CANDLE for work in works) else None,
    )
