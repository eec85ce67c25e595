"""What the processes that measure have in common: their arguments, their clock, and the line they end with."""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Child:
    """What one process is to measure."""

    work: str
    # the folder of the checkpoints, or of the ONNX files
    models: Path
    threads: int
    # timed runs, after one that is not; 0 ends the process when everything is loaded
    runs: int


def arguments(about: str) -> Child:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--runs", type=int, required=True)
    return Child(**vars(parser.parse_args()))


def measure(function: Callable, child: Child) -> None:
    """Times `function`, and prints the seconds of every run and the most memory this process took."""
    seconds = []
    if child.runs > 0:
        function()
    for _ in range(child.runs):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds, "peak_mib": peak_mib()}), flush=True)


def peak_mib() -> float | None:
    """The most memory that was resident, where the system tells."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return None
