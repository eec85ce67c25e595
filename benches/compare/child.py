"""Shared by the processes that measure: the arguments, the timing, and the line of results."""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Child:
    """The task of one process."""

    work: str
    # the folder of the checkpoints, or of the ONNX files
    models: Path
    threads: int
    # timed runs, after one untimed run; with 0 the process ends when everything is loaded
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
    """Times `function`; prints the seconds of every run and the peak memory of this process."""
    seconds = []
    if child.runs > 0:
        function()
    for _ in range(child.runs):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds, "peak_mib": peak_mib()}), flush=True)


def peak_mib() -> float | None:
    """The peak of the resident memory in MiB; `None` if the system does not report it."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return None
