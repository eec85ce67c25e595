"""Generates all fixtures of this folder. Without options, it needs only files of the repository.

The demo scenes are generated only if the demo weights exist.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from fixtures import HERE


def run(script: str, *options: str) -> None:
    """Runs a script in its own process, with one thread."""
    command = [sys.executable, str(HERE / script), *options]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=Path, help="BERT's vocab.txt, to generate the tiny tokenizer")
    parser.add_argument("--bert-tokenizer", type=Path, help="bert-base-uncased's tokenizer.json, for tokens.json")
    parser.add_argument("--brush-vectors", type=Path, help="JSON with brush RLE of the editor, which is copied")
    arguments = parser.parse_args()

    def option(name: str, value: Path | None) -> list[str]:
        return [name, str(value)] if value else []

    run("generate_detector.py", *option("--vocabulary", arguments.vocabulary))
    run("generate_segmenter.py")
    run(
        "generate_processing.py",
        *option("--bert-tokenizer", arguments.bert_tokenizer),
        *option("--brush-vectors", arguments.brush_vectors),
    )
    weights = [HERE.parent.parent / "models" / "demo" / part / "model.safetensors" for part in ("detector", "segmenter")]
    if all(path.exists() for path in weights):
        run("demo_scenes.py")
    else:
        print("the demo weights do not exist: demo/ is not changed")


if __name__ == "__main__":
    main()
