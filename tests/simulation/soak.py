"""Soak test: a team at work, with the demo models. Annotators type, click, leave and come back; there are batches, webhooks
and `annotate` that is killed now and then, and Label Studio fails now and then.

    python3 tests/simulation/soak.py [--minutes 10] [--seed 1] [--groundling BINARY] [--out DIR]

Prints a table, and writes soak.json, soak.svg and the server's log to DIR. The exit code is 1 if a response was lost,
belonged to another image or had a duplicate region, if a request failed while Label Studio was healthy, or, in runs of five
minutes and more, if memory grew by more than 5 %. Needs the standard library only.
"""

import argparse
import http.client
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import plot
from server import REPOSITORY, Server, click, environment, prompt, request, task
from studio import CONFIG, PHRASES, TOKEN, Studio

ANNOTATORS, BATCHES = 8, 2
IMAGES = 300
BATCH = 12
# phases of Label Studio: seconds, share of failing requests, whether it is down
CYCLE = ((25, 0.0, False), (10, 0.15, False), (3, 0.0, True))
# seconds for which a failure of Label Studio may still cause errors after it has ended: the timeout of an image
AFTERMATH_S = 8
EXPECTED_ERRORS = (422, 502, 503)


@dataclass
class Report:
    """What all threads observed."""

    times: dict[str, list[float]] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    memory: list[tuple[float, float]] = field(default_factory=list)
    results: dict[tuple[int, str], list] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    lost: int = 0
    wrong_image: int = 0
    duplicates: int = 0
    changed: int = 0
    failed_while_healthy: int = 0
    abandoned: int = 0
    found: list[int] = field(default_factory=lambda: [0, 0])
    annotated: int = 0
    annotate_kills: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def problem(self, counter: str, text: str):
        """Counts a problem and records its text."""
        with self.lock:
            setattr(self, counter, getattr(self, counter) + 1)
            self.problems.append(f"{counter}: {text[:500]}")


def canonical(result: list[dict]) -> list:
    """The regions of a response without their ids, which are new in every response, sorted."""
    regions = [(r["type"], r["from_name"], json.dumps(r["value"], sort_keys=True)) for r in result]
    return sorted(regions)


class Simulation:
    """A server, a fake Label Studio, and the threads that use them."""

    def __init__(self, args, folder: Path):
        self.args, self.folder = args, folder
        self.studio = Studio(IMAGES, args.seed, tasks=40)
        self.report = Report()
        self.start = time.monotonic()
        self.end = self.start + 60 * args.minutes
        self.healthy_since = self.start
        self.is_healthy = True
        settings = {
            "LABEL_STUDIO_HOST": self.studio.url,
            "LABEL_STUDIO_ACCESS_TOKEN": TOKEN,
            "IMAGE_TIMEOUT_S": "5",
            "CACHE_BYTES": str(48 << 20),
        }
        self.settings = settings
        self.server = Server(args.groundling, folder / "models", args.out / "server.log", settings)

    def is_over(self) -> bool:
        return time.monotonic() > self.end

    def vary_failures(self):
        """Makes Label Studio fail in phases."""
        cycle = 0
        while not self.is_over():
            seconds, rate, is_down = CYCLE[cycle % len(CYCLE)]
            is_healthy = rate == 0 and not is_down
            if is_healthy:
                self.healthy_since = time.monotonic()
            self.is_healthy = is_healthy
            self.studio.failure_rate, self.studio.is_down = rate, is_down
            time.sleep(min(seconds, max(0, self.end - time.monotonic())))
            cycle += 1
        self.studio.failure_rate, self.studio.is_down = 0, False
        self.healthy_since, self.is_healthy = time.monotonic(), True

    def was_healthy(self, since: float) -> bool:
        """Whether Label Studio has been healthy from AFTERMATH_S before `since` until now."""
        return self.is_healthy and self.healthy_since + AFTERMATH_S < since

    def send(self, kind: str, path: str, body) -> tuple[int, dict] | None:
        """Sends a request and records its time and status. Returns the status and the JSON of the response."""
        started = time.monotonic()
        try:
            status, answer = self.server.send("POST", path, body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.report.problem("lost", f"{kind}: {error!r}")
            return None
        with self.report.lock:
            self.report.times.setdefault(kind, []).append(time.monotonic() - started)
            key = f"{kind} {status}"
            self.report.statuses[key] = self.report.statuses.get(key, 0) + 1
        if status >= 300:
            if status not in EXPECTED_ERRORS or "error" not in answer or self.was_healthy(started):
                self.report.problem("failed_while_healthy", f"{kind}: {status} {answer}")
        return status, answer

    def check(self, number: int, key: str | None, result: list[dict]):
        """A response must belong to the image, have no duplicate region, and equal the earlier response for the same key."""
        picture = self.studio.pictures[number]
        for region in result:
            if (region["original_width"], region["original_height"]) != (picture.width, picture.height):
                self.report.problem("wrong_image", f"image {number}: {region}")
        shapes = canonical(result)
        if len(set(shapes)) != len(shapes) or len({r["id"] for r in result}) != len(result):
            self.report.problem("duplicates", f"image {number}: {shapes}")
        if key is None:
            return
        with self.report.lock:
            before = self.report.results.setdefault((number, key), shapes)
        if before != shapes:
            self.report.problem("changed", f"image {number}, {key}: {before} and now {shapes}")
        if key in PHRASES:
            self.count_found(picture, key, result)

    def count_found(self, picture, phrase: str, result: list[dict]):
        """Counts the objects with this phrase in the picture, and how many of them were found."""
        boxes = [r["value"] for r in result if r["type"] == "rectanglelabels"]
        for name, left, top, side in picture.objects:
            if name != phrase:
                continue
            middle_x, middle_y = 100 * (left + side / 2) / picture.width, 100 * (top + side / 2) / picture.height
            hit = any(
                b["x"] < middle_x < b["x"] + b["width"] and b["y"] < middle_y < b["y"] + b["height"] for b in boxes
            )
            with self.report.lock:
                self.report.found[0] += hit
                self.report.found[1] += 1

    def annotator(self, number: int):
        """An annotator: opens tasks, types, clicks, and sometimes disconnects before the response."""
        draw = random.Random(self.args.seed * 1000 + number)
        project = f"{10 + number % 3}.1795353181"
        while not self.is_over():
            image = draw.randrange(IMAGES)
            url, id_ = self.studio.image(image), 100 + image
            body = request(CONFIG, [task(id_, url)], project)
            if draw.random() < 0.5 and (response := self.send("open a task", "/predict", body)):
                self.check_response(image, None, response)
            for _ in range(draw.choice((1, 1, 2))):
                phrase = (
                    draw.choice(self.studio.pictures[image].objects)[0] if draw.random() < 0.8 else draw.choice(PHRASES)
                )
                body = request(CONFIG, [task(id_, url)], project, prompt(phrase))
                if draw.random() < 0.07:
                    self.abandon(body, draw.random() * 0.2)
                elif response := self.send("type a prompt", "/predict", body):
                    self.check_response(image, phrase, response)
                time.sleep(draw.expovariate(1 / 0.7))
            for _ in range(draw.choice((0, 1, 3))):
                name, left, top, side = draw.choice(self.studio.pictures[image].objects)
                picture = self.studio.pictures[image]
                x, y = 100 * (left + side / 2) / picture.width, 100 * (top + side / 2) / picture.height
                body = request(CONFIG, [task(id_, url)], project, click(x, y, name))
                if response := self.send("click", "/predict", body):
                    self.check_response(image, f"{x} {y} {name}", response)
                time.sleep(draw.expovariate(1 / 0.3))
            event = {"action": draw.choice(("ANNOTATION_CREATED", "ANNOTATION_UPDATED")), "annotation": "x" * 20000}
            self.send("webhook", "/webhook", event)
            if draw.random() < 0.1:
                time.sleep(draw.uniform(2, 8))

    def abandon(self, body, after: float):
        """Sends a request and disconnects before the response."""
        try:
            self.server.abandon("/predict", body, after)
        except OSError as error:
            self.report.problem("lost", f"abandoned request: {error!r}")
        with self.report.lock:
            self.report.abandoned += 1

    def check_response(self, image: int, key: str | None, response: tuple[int, dict]):
        """Checks the result of a successful response for one task."""
        status, answer = response
        if status != 200:
            return
        results = answer["results"]
        if len(results) != 1:
            self.report.problem("lost", f"{len(results)} results for one task")
        for result in results:
            if "result" in result:
                self.check(image, key, result["result"])

    def batch(self, number: int):
        """Retrieves predictions for random tasks, twelve at a time."""
        draw = random.Random(self.args.seed * 2000 + number)
        while not self.is_over():
            images = [draw.randrange(IMAGES) for _ in range(BATCH)]
            started = time.monotonic()
            tasks = [task(500 + image, self.studio.image(image)) for image in images]
            body = request(CONFIG, tasks, f"{30 + number}.1795353181")
            response = self.send("batch of 12", "/predict", body)
            if response and response[0] == 200:
                results = response[1]["results"]
                if len(results) != len(images):
                    self.report.problem("lost", f"{len(results)} results for {len(images)} tasks")
                for image, result in zip(images, results):
                    if "result" in result:
                        self.check(image, "labels", result["result"])
                    elif self.was_healthy(started):
                        self.report.problem("failed_while_healthy", f"a task of a batch: {result}")
            time.sleep(draw.uniform(3, 9))

    def setups(self):
        """Sends /setup requests of many projects."""
        draw = random.Random(self.args.seed * 3000)
        while not self.is_over():
            body = {
                "project": f"{draw.randrange(40, 90)}.1795353181",
                "schema": CONFIG,
                "hostname": self.studio.url,
                "access_token": "",
                "extra_params": json.dumps({"box_threshold": draw.choice((0.25, 0.3, 0.35))}),
            }
            self.send("setup", "/setup", body)
            time.sleep(draw.uniform(0.5, 2))

    def annotate(self, prompt_text: str, kill_after: float | None) -> int | None:
        """Runs `groundling annotate` for a project. Returns its exit code, or None if it was killed."""
        command = [self.args.groundling, "annotate", "--project", "7", "--prompt", prompt_text]
        variables = environment() | self.settings | {"MODEL_DIR": str(self.folder / "annotate")}
        with open(self.args.out / "annotate.log", "ab") as log:
            process = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
            try:
                return process.wait(kill_after)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait(20)
                return None

    def annotate_repeatedly(self):
        """Runs `groundling annotate` with random prompts, and kills it sometimes."""
        draw = random.Random(self.args.seed * 4000)
        while not self.is_over():
            phrase = draw.choice(PHRASES)
            if self.annotate(phrase, draw.uniform(0.5, 6)) is None:
                with self.report.lock:
                    self.report.annotate_kills += 1
            time.sleep(draw.uniform(5, 20))

    def watch_memory(self):
        """Samples the memory of the server."""
        while not self.is_over():
            self.report.memory.append((time.monotonic() - self.start, self.server.memory_mib()))
            time.sleep(0.5)

    def run(self):
        """Runs all threads, and checks the predictions of `annotate` at the end."""
        jobs = [self.vary_failures, self.setups, self.watch_memory, self.annotate_repeatedly]
        threads = [threading.Thread(target=job) for job in jobs]
        threads += [threading.Thread(target=self.annotator, args=(i,)) for i in range(ANNOTATORS)]
        threads += [threading.Thread(target=self.batch, args=(i,)) for i in range(BATCHES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # Label Studio is healthy again: annotate must complete
        time.sleep(1)
        if (status := self.annotate(PHRASES[0], None)) != 0:
            self.report.problem("failed_while_healthy", f"annotate ended with exit code {status}")
        stored = [(p["task"], p["model_version"]) for p in self.studio.predictions]
        for task_id, model_version in {pair for pair in stored if stored.count(pair) > 1}:
            self.report.problem("duplicates", f"task {task_id} has two predictions of {model_version}")
        version = self.studio.predictions[-1]["model_version"] if stored else None
        self.report.annotated = len(stored)
        if (missing := self.studio.tasks - sum(v == version for _, v in stored)) > 0:
            self.report.problem("lost", f"annotate left {missing} tasks without a prediction")
        if self.server.process.poll() is not None:
            self.report.problem("lost", f"the server ended with exit code {self.server.process.returncode}")
        elif (status := self.server.stop()) != 0:
            self.report.problem("lost", f"the server ended with exit code {status} after SIGTERM")
        log = (self.args.out / "server.log").read_text()
        if "panicked" in log:
            self.report.problem("lost", "a thread panicked: see server.log")


def growth(memory: list[tuple[float, float]]) -> tuple[float, float]:
    """The median memory in the middle of the run and at its end, in MiB."""
    values = [mib for _, mib in memory]
    middle = values[len(values) * 4 // 10 : len(values) * 6 // 10]
    return statistics.median(middle), statistics.median(values[len(values) * 8 // 10 :])


def percentile(values: list[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def table(report: Report) -> list[dict]:
    """Count, percentiles in seconds, and errors of each kind of request."""
    rows = []
    for kind, times in sorted(report.times.items()):
        row = {"kind": kind, "count": len(times)}
        row |= {f"p{round(100 * q)}": percentile(times, q) for q in (0.5, 0.9, 0.99)}
        row["max"] = max(times)
        statuses = {k.rsplit(" ", 1)[1]: n for k, n in report.statuses.items() if k.rsplit(" ", 1)[0] == kind}
        row["errors"] = sum(n for status, n in statuses.items() if int(status) >= 300)
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--groundling", type=Path, default=REPOSITORY / "target" / "release" / "groundling")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "target" / "simulation")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for log in ("server.log", "annotate.log"):
        (args.out / log).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        simulation = Simulation(args, Path(folder))
        try:
            simulation.run()
        finally:
            if simulation.server.process.poll() is None:
                simulation.server.kill()
    report = simulation.report
    middle, end = growth(report.memory)
    # in a short run the cache is still filling
    if args.minutes >= 5 and end > 1.05 * middle:
        report.problems.append(f"memory grew from {middle:.0f} to {end:.0f} MiB")
    rows = table(report)
    print("| request | count | errors | p50 ms | p90 ms | p99 ms | max ms |\n|---|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        times = " | ".join(f"{1000 * row[key]:.0f}" for key in ("p50", "p90", "p99", "max"))
        print(f"| {row['kind']} | {row['count']} | {row['errors']} | {times} |")
    faults = sum(simulation.studio.faults.values())
    found, total = report.found
    numbers = {
        "failures of Label Studio": faults,
        "requests that were abandoned by the client": report.abandoned,
        "responses lost": report.lost,
        "responses for another image": report.wrong_image,
        "duplicate regions or predictions": report.duplicates,
        "responses that changed": report.changed,
        "failures while Label Studio was healthy": report.failed_while_healthy,
        "objects found of those in the pictures": f"{found} of {total}",
        "predictions stored by annotate": report.annotated,
        "annotate killed": report.annotate_kills,
        "memory in the middle, MiB": round(middle, 1),
        "memory at the end, MiB": round(end, 1),
    }
    print()
    for name, value in numbers.items():
        print(f"{name}: {value}")
    for problem in report.problems[:20]:
        print("PROBLEM", problem)
    result = {
        "minutes": args.minutes,
        "seed": args.seed,
        "requests": rows,
        "numbers": numbers,
        "faults": simulation.studio.faults,
    }
    (args.out / "soak.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "soak.svg").write_text(plot.draw(report.times, report.memory, f"{args.minutes:g} minutes"))
    sys.exit(bool(report.problems))


if __name__ == "__main__":
    main()
