"""Prints the results of `run` as tables.

    python report.py selftest FILE.json     the failed checks of a selftest, and the others with the largest differences
    python report.py times OUT              the times of `bench` and torch, and the peak memory of every step
"""

import json
import sys
from datetime import datetime
from pathlib import Path

# stages that torch does not run
OUTSIDE = ("detector.preprocess", "detector.post_process")
# the segmenter's stages: once per image, and for its boxes
ENCODER, MASKS = "segmenter.encode_image", "segmenter.masks"
MODELS = (
    "grounding-dino-tiny",
    "sam-vit-base",
    "mobile-sam",
    "sam2.1-hiera-tiny",
    "sam-hq-vit-base",
    "efficientvit-sam-l1",
)
PRECISIONS = ("f32", "f16", "bf16")


def read(file: Path) -> dict:
    """The content of a JSON file; empty if there is no valid file."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def selftest(file: Path) -> None:
    """Prints the failed checks, then the six others that come nearest to their tolerance."""
    report = read(file)
    if not report:
        print(f"{file.name}: no report")
        return
    checks = report["checks"]
    wrong = [check for check in checks if check["result"] != "ok"]
    print(f"{file.name}: {len(checks)} checks on {report['device']}, {len(wrong)} failed, {report['seconds']:.1f} s")
    share = lambda check: (check["largest_difference"] or 0) / (check["allowed"] or 1)  # noqa: E731
    nearest = sorted((check for check in checks if check not in wrong), key=share)[-6:]
    for check in wrong + nearest:
        difference = check["largest_difference"]
        found = check["reason"] or f"{difference:.2e}, allowed {check['allowed']:.1e}"
        print(f"  {check['result']}: {check['check']} ({check['on']}; {check['used_by']}; {check['shape'][:80]}): {found[:300]}")


def milliseconds(file: Path) -> dict[str, float]:
    """The medians of a `bench`: of the model, of every stage, and of the whole run."""
    report = read(file)
    if not report:
        return {}
    stages = {stage["name"]: stage for stage in report["stages"]}
    found = {}

    def add(stage: dict) -> None:
        found[stage["name"]] = 1e3 * stage["median_s"]
        for part in stage["parts"]:
            add(part)

    for stage in stages.values():
        add(stage)
    if ENCODER in stages:
        found["model"] = found[ENCODER]
    else:
        inside = [stages[name]["samples_s"] for name in stages if name not in OUTSIDE and name.startswith("detector.")]
        totals = sorted(map(sum, zip(*inside, strict=True)))
        found["model"] = 1e3 * totals[len(totals) // 2]
    found["whole"] = 1e3 * report["total"]["median_s"]
    found["load"] = 1e3 * report["load_s"]
    return found


def number(value: float | None) -> str:
    """Milliseconds as a cell of a table."""
    return "-" if value is None else f"{value:.2f}"


def peaks(out: Path) -> dict[str, tuple[int, int]]:
    """For every step, the peak memory of the GPU in MiB and its highest utilisation in percent."""
    samples = []
    for line in (out / "gpu.csv").read_text().splitlines() if (out / "gpu.csv").is_file() else []:
        fields = [field.strip() for field in line.split(",")]
        try:
            when = datetime.strptime(fields[0], "%Y/%m/%d %H:%M:%S.%f").timestamp()
            samples.append((when, int(fields[1]), int(fields[2])))
        except (ValueError, IndexError):
            continue
    found = {}
    for line in (out / "steps.txt").read_text().splitlines() if (out / "steps.txt").is_file() else []:
        name, start, end = line.split()
        inside = [sample for sample in samples if float(start) <= sample[0] <= float(end)]
        if inside:
            found[name] = (max(sample[1] for sample in inside), max(sample[2] for sample in inside))
    return found


def times(out: Path) -> None:
    """Prints all times."""
    torch = read(out / "torch.json")
    memory = peaks(out)
    print(f"\ntimes in ms (medians); torch {torch.get('torch')}, {torch.get('device')}\n")
    print("| model | precision | groundling, model | whole run | torch, same precision | autocast | groundling / torch"
          " | MiB | torch MiB |\n|---|---|---|---|---|---|---|---|---|")
    for model in MODELS:
        for precision in PRECISIONS:
            name = f"bench-{model}-{precision}"
            ours = milliseconds(out / f"{name}.json")
            theirs = torch.get(f"{model} {precision}", {})
            cast = torch.get(f"{model} {precision} autocast", {})
            of = lambda result: 1e3 * result["median_s"] if "median_s" in result else None  # noqa: E731
            best = min((value for value in (of(theirs), of(cast)) if value), default=None)
            ratio = f"{ours['model'] / best:.2f}" if ours and best else "-"
            print(
                f"| {model} | {precision} | {number(ours.get('model'))} | {number(ours.get('whole'))} | "
                f"{number(of(theirs))} | {number(of(cast))} | {ratio} | {memory.get(name, ('-',))[0]} | "
                f"{number(theirs.get('peak_mib'))} |"
            )
        tf32 = torch.get(f"{model} tf32", {})
        if "median_s" in tf32:
            print(f"| {model} | tf32 | - | - | {number(1e3 * tf32['median_s'])} | - | - | - | - |")
    for key, result in torch.items():
        if isinstance(result, dict):
            print(f"  torch, {key}: {result.get('error') or 'attention: ' + result['attention']}")
    for file in sorted(out.glob("tune-*.json")):
        ours = milliseconds(file)
        if ours:
            print(f"{file.stem}: model {ours['model']:.2f}, whole {ours['whole']:.2f}")
    print("\nstages of groundling, ms")
    for file in sorted(out.glob("bench-*.json")):
        ours = milliseconds(file)
        stages = [f"{name} {value:.2f}" for name, value in ours.items() if name not in ("model", "whole")]
        print(f"{file.stem}: " + ", ".join(stages))
    print("\npeak memory of the GPU in MiB, and its highest utilisation in a sample in %")
    for name, (mib, busy) in memory.items():
        print(f"{name}: {mib}, {busy}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["selftest", file]:
            selftest(Path(file))
        case ["times", out]:
            times(Path(out))
        case _:
            raise SystemExit(__doc__)
