"""Measures groundling at several sizes, and writes the numbers and plots of docs/performance.md.

    python3 benches/compare/docs.py [--repeat N] [--threads N]
    python3 benches/compare/docs.py --write      # writes the earlier measurements again
    python3 benches/compare/docs.py --smoke      # one minute with the demo models, writes to target/compare/smoke

It replaces only the text between the markers in docs/performance.md. The numbers are stored in
target/compare/performance.json. If there are results of compare.py, they are added.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import blocks
import machine
from engines import Run
from prepare import FOLDER, REPOSITORY, Prepared, checkpoints, environment, groundling

VOCABULARY = REPOSITORY / "models" / "bert-base-uncased" / "vocab.txt"


@dataclass
class Sweep:
    """The values that are varied."""

    detector: str | Path
    segmenter: str | Path
    # short sides of the detector's input, for images of 3:4
    sizes: list[int]
    phrases: list[int]
    boxes: list[int]
    cores: list[int]
    # (height, width) of the image that masks are made for
    image: tuple[int, int]
    # for the table of models
    detectors: dict[str, str | Path]
    segmenters: dict[str, str | Path]


def full(models: Path, cores: int) -> Sweep:
    """The published models at full size."""
    return Sweep(
        detector=models / "grounding-dino-tiny",
        segmenter=models / "mobile-sam",
        sizes=[400, 600, 800, 1000, 1200, 1400, 1600],
        phrases=[1, 2, 5, 10, 20, 40, 80],
        boxes=[1, 2, 5, 10, 20, 50, 100, 200],
        cores=[count for count in (1, 2, 4, 8, 16, 32) if count <= cores],
        image=(1280, 1920),
        detectors={name: models / name for name in ("grounding-dino-tiny", "grounding-dino-base")},
        segmenters={name: models / name for name in ("mobile-sam", "sam-vit-base")},
    )


def smoke() -> Sweep:
    """Few points, with the demo models."""
    return Sweep(
        detector="demo",
        segmenter="demo",
        sizes=[96, 160, 256],
        phrases=[1, 3],
        boxes=[1, 5],
        cores=[1, 2],
        image=(320, 480),
        detectors={"demo": "demo"},
        segmenters={"demo": "demo"},
    )


def measure(run: Run, sweep: Sweep) -> dict:
    """Measures all sweeps; each result is a list of points."""
    found = {"size": [], "phrases": [], "boxes": [], "cores": [], "detectors": [], "segmenters": []}

    def add(kind: str, x, *arguments, threads: int = run.threads, **settings) -> None:
        report = Run(run.prepared, threads, run.runs).bench(*arguments, **settings)
        print(f"{kind} {x}: {report['total']['median_s']:.3f} s", file=sys.stderr, flush=True)
        found[kind].append(point(x, report))

    for side in sweep.sizes:
        detector = ["--only", "detector", "--detector", sweep.detector, "--detector-size", str(side)]
        add("size", side, *detector, size=(side, side * 4 // 3))
    words = common_words()
    for count in sweep.phrases:
        prompt = ". ".join(words[:count])
        add("phrases", count, "--only", "detector", "--detector", sweep.detector, prompt=prompt)
    segment = ["--only", "segmenter", "--segmenter"]
    for count in sweep.boxes:
        add("boxes", count, *segment, sweep.segmenter, "--boxes", str(count), size=sweep.image)
    for count in sweep.cores:
        models = ["--detector", sweep.detector, "--segmenter", sweep.segmenter, "--boxes", "20"]
        add("cores", count, *models, threads=count)
    for name, model in sweep.detectors.items():
        add("detectors", name, "--only", "detector", "--detector", model)
    for name, model in sweep.segmenters.items():
        add("segmenters", name, *segment, model, "--boxes", "1", size=sweep.image)
    return found


def point(x, report: dict) -> dict:
    """The values of one report that are stored."""
    detector = report["detector"] or {}
    return {
        "x": x,
        "input": [detector.get("input_height"), detector.get("input_width")],
        "tokens": detector.get("tokens"),
        "total_s": report["total"]["median_s"],
        "min_s": report["total"]["min_s"],
        "max_s": report["total"]["max_s"],
        "memory_mib": report["peak_memory_mib"],
        "load_s": report["load_s"],
        "peak_f32_gflops": report["peak_f32_gflops"],
        "stages": {
            name: {"median_s": stage["median_s"], "gflop": stage["gflop"], "share_of_peak": stage["share_of_peak"]}
            for name, stage in report["stages"].items()
        },
    }


def common_words() -> list[str]:
    """Words that are one token each."""
    words = VOCABULARY.read_text(encoding="utf-8").splitlines()[3000:]
    return [word for word in words if word.isascii() and word.isalpha() and len(word) > 3]


def write(document: dict | None, docs: Path) -> None:
    """Replaces the generated parts of performance.md, and writes the plots beside it."""
    template = (REPOSITORY / "docs" / "performance.md").read_text(encoding="utf-8")
    comparisons = [FOLDER / "results.json", FOLDER / "families.json"]
    others, families = (json.loads(file.read_text()) if file.is_file() else None for file in comparisons)
    text, plots = blocks.fill(template, document, others, families)
    (docs / "performance").mkdir(parents=True, exist_ok=True)
    for name, plot in plots.items():
        (docs / "performance" / f"{name}.svg").write_text(plot, encoding="utf-8")
    (docs / "performance.md").write_text(text, encoding="utf-8")
    print(f"wrote {docs / 'performance.md'} and {len(plots)} plots")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="timed repetitions of each point (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads, unless their number is varied (default: 2)")
    parser.add_argument("--groundling", type=Path, help="a binary built elsewhere (default: build this working copy)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--smoke", action="store_true", help="measure few small points, to check that everything works")
    kind.add_argument("--write", action="store_true", help="measure nothing; write the earlier measurements again")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    out = FOLDER / "smoke" if args.smoke else FOLDER
    docs = out if args.smoke else REPOSITORY / "docs"
    file = out / "performance.json"
    if not args.write:
        models = FOLDER / "models" if args.smoke else checkpoints(environment())
        prepared = Prepared(models=models, groundling=args.groundling or groundling())
        run = Run(prepared, args.threads, 1 if args.smoke else args.repeat)
        cpu = machine.cpu()
        document = {
            "machine": cpu,
            "versions": machine.own_versions(prepared.groundling),
            "commit": machine.commit(),
            "settings": {"threads": args.threads, "repeat": run.runs},
        }
        document |= measure(run, smoke() if args.smoke else full(models, cpu["cores"]))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document, indent=2) + "\n")
    write(json.loads(file.read_text()) if file.is_file() else None, docs)


if __name__ == "__main__":
    main()
