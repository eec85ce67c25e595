"""Runs each engine on a work item, and reads the result of its process."""

import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from prepare import HERE, REPOSITORY, Prepared
from sizes import BOXES, DETECTOR_SIZE, IMAGE_SIZE, PROMPT, REQUEST_SIZE, SEGMENTER_SIDE
from works import CANDLE, FAMILIES, HQ_MASKS, LIGHT_HQ_SAM, MASKS, is_detector

# in the order in which they take turns, and of the table's columns
ENGINES = ("onnxruntime", "torch", "candle", "groundling")
# stages of the detector that the other engines do not run
OUTSIDE_OF_THE_MODEL = ("detector.preprocess", "detector.post_process")
READY_TIMEOUT_S = 300


@dataclass
class Run:
    """Settings of the processes that measure."""

    prepared: Prepared
    threads: int
    # timed runs in a process, after one untimed run
    runs: int

    def measure(self, engine: str, work: str) -> list[float] | None:
        """The samples of one process: seconds, or MiB for `memory`; `None` if the engine cannot run this work item."""
        if engine == "groundling":
            return self.groundling(work)
        if engine == "candle":
            if work not in CANDLE:
                return None
            return self.child([self.prepared.candle, work, "--runs", str(self.runs)])["seconds"]
        prepared = self.prepared
        models = prepared.onnx if engine == "onnxruntime" else prepared.models
        command = [prepared.python, HERE / f"with_{engine}.py", "--models", models, "--threads", str(self.threads)]
        if work == "start":
            return [self.until_line([*command, "request", "--runs", "0"])]
        if work == "memory":
            return [self.child([*command, "request", "--runs", "1"])["peak_mib"]]
        return self.child([*command, work, "--runs", str(self.runs)])["seconds"]

    def groundling(self, work: str) -> list[float]:
        """Measures with `groundling bench`; for `start`, with the server, until it reports that it is ready."""
        models = self.prepared.models
        detector, segmenter = models / "grounding-dino-tiny", models / "mobile-sam"
        if work == "start":
            return [self.until_ready(detector, segmenter)]
        if work == "memory":
            both = ["--detector", detector, "--segmenter", segmenter, "--boxes", str(BOXES)]
            report = Run(self.prepared, self.threads, runs=1).bench(*both, size=REQUEST_SIZE)
            return [report["peak_memory_mib"]]
        if is_detector(work):
            report = self.bench("--only", "detector", "--detector", models / work, size=DETECTOR_SIZE)
            stages = [name for name in report["stages"] if name.startswith("detector.")]
            return total(report, [name for name in stages if name not in OUTSIDE_OF_THE_MODEL])
        if work in MASKS:
            model = models / LIGHT_HQ_SAM if work == HQ_MASKS else segmenter
            one = ["--only", "segmenter", "--segmenter", model, "--boxes", str(MASKS[work])]
            return total(self.bench(*one, size=IMAGE_SIZE), ["segmenter.masks", "segmenter.post_process"])
        one = ["--only", "segmenter", "--segmenter", models / work, "--boxes", "1"]
        report = self.bench(*one, size=(SEGMENTER_SIDE, SEGMENTER_SIDE))
        # the maps that the decoders of SAM 2 and HQ-SAM compute once per image have no stage of their own
        return total(report, ["segmenter.encode_image", *(["segmenter.other"] if work in FAMILIES else [])])

    def bench(self, *arguments, size: tuple[int, int] = DETECTOR_SIZE, prompt: str = PROMPT) -> dict:
        """The report of `groundling bench` on noise of this (height, width), with the stages by name."""
        command = [self.prepared.groundling, "bench", *arguments, "--device", "cpu", "--json"]
        command += ["--image-size", "x".join(map(str, size)), "--prompt", prompt, "--repeat", str(self.runs)]
        report = self.child(command)
        report["stages"] = {stage["name"]: stage for stage in report["stages"]}
        return report

    def child(self, command: list) -> dict:
        """Runs a process that prints JSON."""
        result = subprocess.run(command, env=self.variables(), cwd=REPOSITORY, text=True, stdout=subprocess.PIPE)
        if result.returncode:
            raise SystemExit(f"{' '.join(map(str, command))} failed")
        # libraries may print text before it
        return json.loads(result.stdout[result.stdout.index("{") :])

    def until_line(self, command: list) -> float:
        """Seconds from the start of a process to its first line."""
        started = time.perf_counter()
        with subprocess.Popen(command, env=self.variables(), text=True, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            seconds = time.perf_counter() - started
        if process.returncode:
            raise SystemExit(f"{' '.join(map(str, command))} failed")
        return seconds

    def until_ready(self, detector: Path, segmenter: Path) -> float:
        """Seconds from the start of groundling's server until it reports that the models are loaded."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [self.prepared.groundling, "serve", "--port", str(port), "--device", "cpu"]
        with tempfile.TemporaryDirectory() as memory:
            command += ["--detector", detector, "--segmenter", segmenter, "--model-dir", memory]
            started = time.perf_counter()
            process = subprocess.Popen(command, env=self.variables(), stdout=subprocess.DEVNULL)
            try:
                while not is_ready(port):
                    if process.poll() is not None or time.perf_counter() - started > READY_TIMEOUT_S:
                        raise SystemExit("groundling serve did not become ready")
                    time.sleep(0.005)
                return time.perf_counter() - started
            finally:
                process.terminate()
                process.wait()

    def variables(self) -> dict[str, str]:
        """The environment variables of a process: the number of threads, and no network."""
        threads = {"THREADS": str(self.threads), "RAYON_NUM_THREADS": str(self.threads)}
        return os.environ | threads | {"HF_HUB_OFFLINE": "1", "LOG_LEVEL": "error"}


def total(report: dict, stages: list[str]) -> list[float]:
    """Per run the seconds of several stages together."""
    return [sum(samples) for samples in zip(*(report["stages"][name]["samples_s"] for name in stages), strict=True)]


def is_ready(port: int) -> bool:
    """Whether the server has loaded its models."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
