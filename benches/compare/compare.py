"""Compares groundling with ONNX Runtime, torch and candle-transformers: same models, sizes and number of threads.

    python3 benches/compare/compare.py [--repeat N] [--threads N] [--work NAME ... | --families] [--engines NAME ...]

makes what is missing (README.md says what, and how long it takes), measures, prints a table and writes JSON.
"""

import argparse
import json
import sys
from pathlib import Path

import machine
import report
from engines import ENGINES, Run
from prepare import FOLDER, Prepared, prepare
from works import FAMILIES, WORK

# what can be measured
ALL = WORK | FAMILIES


def measure(run: Run, work: str, engines: list[str], repeat: int) -> dict:
    """Measures one row. The engines take turns, so that a change of the machine's speed affects all of them."""
    samples: dict[str, list[float]] = {}
    for turn in range(repeat):
        for engine in engines:
            found = run.measure(engine, work)
            if found is None:
                continue
            samples.setdefault(engine, []).extend(found)
            shown = ", ".join(f"{sample:.3f}" for sample in found)
            print(f"{work}, {turn + 1} of {repeat}, {engine}: {shown}", file=sys.stderr, flush=True)
    title, unit = ALL[work]
    results = {engine: report.summary(numbers) for engine, numbers in samples.items()}
    return {"name": work, "title": title, "unit": unit, "engines": results, "ratios": report.ratios(results)}


def own_view(run: Run) -> dict:
    """The processor's peak rate and the instruction set of the kernels, as groundling reports them."""
    demo = run.bench("--detector", "demo", "--segmenter", "demo", size=(160, 240))
    return {"peak_f32_gflops": demo["peak_f32_gflops"], "kernels": demo["instruction_set"]}


def warm_page_cache(prepared: Prepared) -> None:
    """Reads every file of weights once, so that no start waits for the disk."""
    for folder in (prepared.models, prepared.onnx):
        for file in folder.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    while opened.read(1 << 24):
                        pass


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="processes per engine and work item (default: 3)")
    parser.add_argument("--runs", type=int, default=2, help="timed runs per process, after an untimed one (default: 2)")
    parser.add_argument("--threads", type=int, default=2, help="threads of every engine (default: 2)")
    work = parser.add_mutually_exclusive_group()
    work.add_argument("--work", nargs="+", choices=ALL, default=list(WORK), metavar="NAME", help=", ".join(ALL))
    work.add_argument("--families", action="store_true", help="measure the newer families instead of the other models")
    parser.add_argument(
        "--engines", nargs="+", choices=ENGINES, default=list(ENGINES), metavar="NAME", help=", ".join(ENGINES)
    )
    parser.add_argument("--groundling", type=Path, help="a binary built elsewhere (default: build this working copy)")
    parser.add_argument("--prepare", action="store_true", help="make what is missing, but measure nothing")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of what is made (default: target/compare)")
    parser.add_argument("--python", type=Path, help="with the packages of requirements.txt (default: install them)")
    parser.add_argument("--output", type=Path, help="(default: results.json or families.json in --folder)")
    args = parser.parse_args()
    if args.families:
        args.work = list(FAMILIES)
    args.output = args.output or args.folder / ("families.json" if args.families else "results.json")
    return args


def main() -> None:
    args = arguments()
    prepared = prepare(args.folder, args.work, args.engines, args.groundling, args.python)
    if args.prepare:
        return
    run = Run(prepared, args.threads, args.runs)
    engines = [engine for engine in ENGINES if engine in args.engines]
    document = {
        "machine": machine.cpu() | own_view(run),
        "versions": machine.versions(prepared),
        "commit": machine.commit(),
        "settings": {"threads": args.threads, "repeat": args.repeat, "runs": args.runs},
        "items": [],
    }
    warm_page_cache(prepared)
    for work in (work for work in ALL if work in args.work):
        items = document["items"]
        items.append(measure(run, work, engines, args.repeat))
        extra = report.more_boxes(items) if work == "masks-20" else None
        items += [extra] if extra else []
        # the results so far are saved in case a later item fails
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(document, indent=2) + "\n")
    print(report.machine(document), report.table(document), sep="\n\n")


if __name__ == "__main__":
    main()
