"""Measures how long an annotator waits: second requests on an image, and requests during a batch.

    python3 benches/server/requests.py [--detector DIR] [--segmenter DIR] [--groundling BINARY] [--clients SECONDS]
        [--mixed N]

It starts its own server. The default models are those of benches/compare (target/compare/models/grounding-dino-tiny and
mobile-sam). Every time is printed in seconds and relative to the first request of the same run. It uses only the
standard library.
"""

import argparse
import concurrent.futures
import http.client
import http.server
import json
import os
import random
import re
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
MODELS = REPOSITORY / "target" / "compare" / "models"

THRESHOLDS = '<Number name="box_threshold" toName="image"/>'
CONFIG = """<View><Image name="image" value="$image"/>
<TextArea name="prompt" toName="image"/>{numbers}
<RectangleLabels name="label" toName="image">{labels}</RectangleLabels>
<BrushLabels name="label2" toName="image">{labels}</BrushLabels></View>"""


def picture(seed: int, width: int = 1280, height: int = 960) -> bytes:
    """A PNG of blocks with random colours, different for each seed."""
    draw = random.Random(seed)
    rows = []
    for y in range(0, height, 16):
        row = b"".join(bytes([draw.randrange(256) for _ in range(3)]) * 16 for _ in range(width // 16))
        rows += [b"\0" + row] * min(16, height - y)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"".join(rows), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


class Pictures(http.server.BaseHTTPRequestHandler):
    """Serves `/<seed>.png`, with an ETag."""

    protocol_version = "HTTP/1.1"
    made: dict[int, bytes] = {}

    def do_GET(self):  # noqa: N802, http.server requires this name
        seed = int(self.path.strip("/").removesuffix(".png"))
        etag = f'"{seed}"'
        if self.headers.get("If-None-Match") == etag:
            self.send_response(304)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = self.made[seed]
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            self.wfile.write(data)
        except OSError:
            pass  # the client has closed the connection

    def log_message(self, *_):
        pass


class Server:
    """groundling on a free port of 127.0.0.1."""

    def __init__(self, args, folder: Path, extra: list[str], segmenter=None):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [args.groundling, "serve", "--port", str(self.port), "--bind-address", "127.0.0.1"]
        command += ["--detector", str(args.detector), "--segmenter", str(segmenter or args.segmenter)]
        command += ["--model-dir", str(folder / "models"), "--allowed-image-hosts", "127.0.0.1", *extra]
        self.log = open(folder / "server.log", "w")  # noqa: SIM115, it stays open while the process runs
        self.process = subprocess.Popen(command, stderr=self.log, stdout=self.log, env=os.environ | {"NO_COLOR": "1"})
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                if self.get("/ready")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise SystemExit("the server was not ready after 120 s")

    def send(self, method: str, path: str, body: bytes | None = None, timeout: float = 900) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, bytes]:
        return self.send("GET", path, timeout=30)

    def predict(self, request: dict) -> tuple[float, dict]:
        """The time in seconds, and the result of the only task."""
        body = json.dumps(request).encode()
        start = time.monotonic()
        status, answer = self.send("POST", "/predict", body)
        seconds = time.monotonic() - start
        if status != 200:
            raise SystemExit(f"{status}: {answer[:300]}")
        return seconds, json.loads(answer)["results"][0]

    def computed(self) -> dict[str, int]:
        """For each stage, the number of results that were computed so far."""
        text = self.get("/metrics")[1].decode()
        found = re.findall(r'groundling_store_misses_total\{stage="(\w+)"\} (\d+)', text)
        return {stage: int(count) for stage, count in found}

    def memory_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def stop(self):
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


def labels(names: list[str]) -> str:
    return "".join(f'<Label value="{name}"/>' for name in names)


def base_request(config: str, url: str, task: int) -> dict:
    return {
        "tasks": [{"id": task, "data": {"image": url}, "annotations": [], "drafts": []}],
        "project": "7.1795353181",
        "label_config": config,
        "params": {"login": None, "password": None, "context": None},
    }


def prompt(url: str, text: str, threshold: float | None = None) -> dict:
    """The request that the editor sends after a prompt was typed."""
    request = base_request(CONFIG.format(numbers=THRESHOLDS, labels=labels(["cat", "dog"])), url, 1)
    region = {"type": "textarea", "from_name": "prompt", "to_name": "image", "id": "a", "value": {"text": [text]}}
    result = [region]
    if threshold is not None:
        number = {"number": threshold}
        result.append({"type": "number", "from_name": "box_threshold", "to_name": "image", "id": "b", "value": number})
    request["params"]["context"] = {"result": result}
    return request


def click(url: str, x: float, y: float) -> dict:
    """The request that the editor sends after a click with a smart tool."""
    request = prompt(url, "")
    value = {"x": x, "y": y, "width": 0.2, "keypointlabels": ["cat"]}
    region = {"type": "keypointlabels", "from_name": "label2", "to_name": "image", "id": "c", "is_positive": True}
    request["params"]["context"] = {"result": [region | {"value": value}]}
    return request


def protocol(url: str, context: dict) -> dict:
    """A request of Label Studio's capability protocol."""
    request = prompt(url, "")
    request["params"]["context"] = context
    return request


def object_click(url: str, *points: tuple[float, float]) -> dict:
    """Clicks on one object in the capability protocol."""
    values = [{"x": x, "y": y, "positive": True} for x, y in points]
    return protocol(url, {"result": [{"type": "keypointlabels", "value": value} for value in values]})


def batch(urls: list[str], names: list[str]) -> dict:
    """A batch request, which searches for the labels."""
    request = base_request(CONFIG.format(numbers="", labels=labels(names)), urls[0], 1)
    request["project"] = "8.1795353181"
    request["tasks"] = [{"id": 100 + i, "data": {"image": url}} for i, url in enumerate(urls)]
    return request


def boxes(answer: dict) -> list[float]:
    """Scores of the rectangles, best first."""
    found = [region["score"] for region in answer["result"] if region["type"] == "rectanglelabels"]
    return sorted(found, reverse=True)


class Table:
    """The rows of the report, printed as soon as they are measured."""

    def __init__(self):
        self.first = None
        print("| request | seconds | of the first | computed |\n|---|---:|---:|---|")

    def add(self, name: str, seconds: float, note: str = ""):
        self.first = self.first or seconds
        print(f"| {name} | {seconds:.3f} | {seconds / self.first:.3f} | {note} |", flush=True)


class Scores:
    """Finds the threshold for a number of boxes: with random weights, scores depend on the image and the prompt."""

    def __init__(self, args, url):
        self.url, self.known = url, {}
        with tempfile.TemporaryDirectory() as folder:
            # boxes only: masks of hundreds of boxes would take minutes
            server = Server(args, Path(folder), [], segmenter="none")
            for seed, text in [*((seed, CATS) for seed in range(1, 8)), (1, BUS)]:
                self.known[seed, text] = boxes(server.predict(prompt(url(seed), text, 0.0))[1])
            server.stop()

    def request(self, seed: int, text: str, count: int, position: float = 0.5) -> dict:
        """A request that finds `count` boxes; `position` moves the threshold between the same two scores, 0 to 1."""
        scores = self.known[seed, text]
        threshold = scores[count] + position * (scores[count - 1] - scores[count])
        return prompt(self.url(seed), text, threshold)


CATS, BUS = "a cat. a dog.", "a red bus. a tree."


def second_requests(server: Server, scores: Scores, table: Table):
    def timed(name: str, request: dict) -> dict:
        before = server.computed()
        seconds, answer = server.predict(request)
        after = server.computed()
        new = {stage: count - before.get(stage, 0) for stage, count in after.items()}
        note = ", ".join(f"{stage} {count}" for stage, count in new.items() if count) or "nothing"
        table.add(f"{name}: {len(boxes(answer))} boxes", seconds, note)
        return answer

    # warm up: the first request of a process is slower
    server.predict(scores.request(7, CATS, 10))
    timed("first prompt on an image", scores.request(1, CATS, 10))
    timed("the same prompt again", scores.request(1, CATS, 10))
    timed("another threshold, no new box", scores.request(1, CATS, 10, 0.4))
    timed("another threshold, 10 new boxes", scores.request(1, CATS, 20))
    timed("another prompt, same image", scores.request(1, BUS, 10))
    timed("a click after a prompt on the same image", click(scores.url(1), 40, 40))
    timed("another click", click(scores.url(1), 60, 60))


def measure_batch(server: Server, url, table: Table):
    names = ["cat", "dog"]
    for count, urls in [(1, [50]), (3, [51, 52, 53])]:
        before = server.computed()
        body = json.dumps(batch([url(seed) for seed in urls], names)).encode()
        start = time.monotonic()
        server.send("POST", "/predict", body)
        after = server.computed()
        note = f"text_features {after['text_features'] - before['text_features']}, image_features {after['image_features'] - before['image_features']}"
        table.add(f"a batch of {count} {'task' if count == 1 else 'tasks'} that searches for the labels", time.monotonic() - start, note)


def first_clicks(server: Server, url, table: Table):
    """The first click on an image in the capability protocol, with and without prewarm; medians of 5 images."""
    prewarm = {"event": "prewarm"}
    cold, warm, second = [], [], []
    for seed in range(40, 45):
        cold.append(server.predict(object_click(url(seed), (30, 40)))[0])
    for seed in range(45, 50):
        image = url(seed)
        server.predict(protocol(image, prewarm) | {"project": f"{seed}.1"})
        while server.predict(protocol(image, prewarm) | {"project": f"{seed}.1"})[1]["result"][0]["value"]["cached"] != [0]:
            time.sleep(0.05)
        warm.append(server.predict(object_click(image, (30, 40)))[0])
        second.append(server.predict(object_click(image, (30, 40), (60, 50)))[0])
    table.add("the first click on an image, without prewarm", statistics.median(cold))
    table.add("the first click on an image, after prewarm", statistics.median(warm))
    table.add("the second click on the same object", statistics.median(second))


def during_a_batch(server: Server, scores: Scores, table: Table):
    url = scores.url
    words = "stone river mountain yellow bicycle wooden window garden metal bottle".split()
    names = [" ".join(random.Random(i).choices(words, k=10)) + f" {i}" for i in range(1100)]
    server.predict(scores.request(7, CATS, 10))
    alone = statistics.median(server.predict(scores.request(seed, CATS, 10))[0] for seed in (1, 2, 3))
    table.add("a prompt on a new image, without a batch, median of 3", alone)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(server.predict, batch([url(30), url(31), url(32)], names))
        time.sleep(4)
        clicks = [server.predict(click(url(1), 10 + i, 30))[0] for i in range(10)]
        table.add("a click on a cached image during a batch, median of 10", statistics.median(clicks))
        table.add("the slowest of these clicks", max(clicks))
        during = statistics.median(server.predict(scores.request(seed, CATS, 10))[0] for seed in (4, 5, 6))
        table.add("a prompt on a new image during a batch, median of 3", during, f"{during / alone:.2f} of the time without the batch")
        steps = re.findall(r'groundling_steps\{urgency="batch"\} (\d+)', server.get("/metrics")[1].decode())
        print(f"(steps of the batch that wait or are computed: {steps[0]})")
        server.process.kill()
        running.exception()


def clients(server: Server, url, seconds: float):
    """50 annotators on 20 images; they leave before the end of a third of their requests."""
    stop = time.monotonic() + seconds
    counts = {"answered": 0, "left": 0, "refused": 0, "failed": 0}
    lock = threading.Lock()
    health = []

    def annotator(number: int):
        draw = random.Random(number)
        while time.monotonic() < stop:
            image = url(100 + draw.randrange(20))
            body = draw.choice([click(image, draw.uniform(5, 95), draw.uniform(5, 95)), prompt(image, draw.choice(["a cat.", "a dog. a bus."]), 0.9)])
            leaves = draw.random() < 1 / 3
            try:
                status, _ = server.send("POST", "/predict", json.dumps(body).encode(), draw.uniform(0.05, 1) if leaves else 900)
                kind = "answered" if status == 200 else "refused" if status == 503 else "failed"
            except TimeoutError:
                kind = "left"
            with lock:
                counts[kind] += 1

    def watch():
        while time.monotonic() < stop:
            start = time.monotonic()
            server.get("/health")
            health.append(time.monotonic() - start)
            time.sleep(0.2)

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        for job in [pool.submit(annotator, i) for i in range(50)] + [pool.submit(watch)]:
            job.result()
    print(f"50 clients, {seconds:.0f} s: {counts}; /health at most {1000 * max(health):.0f} ms, median {1000 * statistics.median(health):.1f} ms")


def mixed(args, url, count: int):
    """The memory of the process during many requests of all kinds, with the demo models and a full cache."""
    demo = argparse.Namespace(detector="demo", segmenter="demo", groundling=args.groundling)
    draw = random.Random(5)
    texts = ["red circle.", "blue star.", "green square. red circle."]
    with tempfile.TemporaryDirectory() as folder:
        server = Server(demo, Path(folder), ["--cache-bytes", str(100 << 20)])
        for i in range(count):
            image = url(200 + draw.randrange(200))
            place = draw.uniform(5, 95), draw.uniform(5, 95)
            server.predict(draw.choice([click(image, *place), prompt(image, draw.choice(texts), 0.3)]))
            if (i + 1) % max(1, count // 10) == 0:
                print(f"{i + 1} requests: {server.memory_mib():.0f} MiB", flush=True)
        server.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", default=MODELS / "grounding-dino-tiny")
    parser.add_argument("--segmenter", default=MODELS / "mobile-sam")
    parser.add_argument("--groundling", default=REPOSITORY / "target" / "release" / "groundling")
    parser.add_argument("--clients", type=float, default=60, metavar="SECONDS", help="duration of the test with 50 clients; 0 skips it (default: 60)")
    parser.add_argument("--only-clicks", action="store_true", help="measure the first clicks on images only")
    parser.add_argument("--mixed", type=int, default=0, metavar="N", help="requests to the demo models during which the memory is measured (default: 0)")
    args = parser.parse_args()
    pictures = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=pictures.serve_forever, daemon=True).start()
    # make all pictures before anything is timed
    with concurrent.futures.ProcessPoolExecutor() as pool:
        seeds = [*range(1, 60), *range(100, 120), *(range(200, 400) if args.mixed else ())]
        Pictures.made = dict(zip(seeds, pool.map(picture, seeds), strict=True))
    url = lambda seed: f"http://127.0.0.1:{pictures.server_port}/{seed}.png"  # noqa: E731
    scores = None if args.only_clicks else Scores(args, url)
    everything = [
        lambda server: second_requests(server, scores, table),
        lambda server: measure_batch(server, url, table),
        lambda server: during_a_batch(server, scores, table),
    ]
    parts = [lambda server: first_clicks(server, url, table)]
    if not args.only_clicks:
        parts += everything
    if args.clients and not args.only_clicks:
        parts.append(lambda server: clients(server, url, args.clients))
    table = Table()
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            server = Server(args, Path(folder), [])
            try:
                part(server)
            finally:
                server.stop()
    if args.mixed:
        mixed(args, url, args.mixed)


if __name__ == "__main__":
    sys.exit(main())
