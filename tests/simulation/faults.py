"""Fault injection: `kill -9` at random moments, SIGTERM in every phase, full and unwritable disks, a locked, damaged or
deleted database, truncated models, hostile requests, and clocks that jump.

    python3 tests/simulation/faults.py [--kills 100] [--seed 1] [--groundling BINARY] [--out DIR] [SCENARIO...]

Each method of `Scenarios` is one fault; its docstring is the promise. Prints a table; the exit code is 1 if a promise was
broken. A scenario that needs root (a small disk) or libfaketime (clocks) is reported as skipped without them. Needs the
standard library only.
"""

import argparse
import base64
import gzip
import http.client
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from itertools import permutations
from pathlib import Path

from server import REPOSITORY, Server, environment, prompt, request, task
from studio import CONFIG, PHRASES, TOKEN, Studio, png

DATABASE = "groundling.sqlite3"
# MiB that a server may use a minute after a peak in addition to its models and CACHE_BYTES: memory that the system's
# allocator does not release
MARGIN_MIB = 64
PROMPTS = [". ".join(chosen) for chosen in permutations(PHRASES, 3)]


class Broken(Exception):
    """A broken promise; the message says how."""


class Skipped(Exception):
    """The machine lacks something that the scenario needs; the message says what."""


def must(condition, text: str):
    """Raises Broken unless the condition holds."""
    if not condition:
        raise Broken(text)


class Scenarios:
    """One method per fault. It returns the outcome for the table, or raises Broken or Skipped."""

    def __init__(self, args, folder: Path):
        self.args, self.folder = args, folder
        self.random = random.Random(args.seed)
        self.studio = Studio(40, args.seed, tasks=60)
        self.settings = {
            "LABEL_STUDIO_HOST": self.studio.url,
            "LABEL_STUDIO_ACCESS_TOKEN": TOKEN,
            "IMAGE_TIMEOUT_S": "5",
        }
        self.count = 0
        self.servers: list[Server] = []

    def new_folder(self) -> Path:
        """A new, empty folder for MODEL_DIR."""
        self.count += 1
        folder = self.folder / f"models-{self.count}"
        folder.mkdir()
        return folder

    def start_server(self, models: Path, settings: dict | None = None, wait: bool = True) -> Server:
        log = self.args.out / "faults.log"
        server = Server(self.args.groundling, models, log, self.settings | (settings or {}), wait=False)
        self.servers.append(server)
        if wait:
            server.wait_until_ready()
        return server

    def end_servers(self):
        """Ends the servers that a failed scenario left running."""
        for server in self.servers:
            if server.process.poll() is None:
                server.kill()
        self.servers.clear()

    def type_prompt(self, server: Server, project: str, text: str, image: int = 0) -> tuple[int, dict]:
        """Sends the request of a typed prompt. Returns the status and the JSON of the response."""
        body = request(CONFIG, [task(100 + image, self.studio.image(image))], project, prompt(text))
        return server.send("POST", "/predict", body)

    @staticmethod
    def stored_prompts(models: Path) -> dict[str, str]:
        """The prompts in the database, by project."""
        file = models / DATABASE
        if not file.exists():
            return {}
        connection = sqlite3.connect(file)
        try:
            must(connection.execute("PRAGMA integrity_check").fetchone() == ("ok",), "the database is damaged")
            return dict(connection.execute("SELECT project, prompt FROM projects"))
        finally:
            connection.close()

    # kills

    def killed_server(self) -> str:
        """No answered prompt is lost, whenever the server is killed."""
        models, answered, sent = self.new_folder(), {}, {}
        prompts = 0

        def type_prompts(server: Server, number: int, stop: threading.Event):
            nonlocal prompts
            draw = random.Random(self.random.random())
            while not stop.is_set():
                project, text = f"{number}{draw.randrange(5)}.1", draw.choice(PROMPTS)
                sent[project] = text
                try:
                    if self.type_prompt(server, project, text, draw.randrange(40))[0] == 200:
                        answered[project] = text
                        prompts += 1
                except (OSError, http.client.HTTPException, ValueError):
                    return

        for kill in range(self.args.kills):
            server, stop = self.start_server(models), threading.Event()
            threads = [threading.Thread(target=type_prompts, args=(server, i, stop)) for i in range(3)]
            for thread in threads:
                thread.start()
            time.sleep(self.random.uniform(0, 0.8))
            server.kill()
            stop.set()
            for thread in threads:
                thread.join()
            stored = self.stored_prompts(models)
            for project, text in answered.items():
                must(
                    stored.get(project) in (text, sent[project]),
                    f"kill {kill}: the prompt {text!r} of project {project} was answered, and {stored.get(project)!r} is stored",
                )
            # a prompt without a response may have been stored: from now on it counts as answered
            answered.update((project, text) for project, text in stored.items() if text)
        return f"{self.args.kills} kills, {prompts} prompts answered, 0 lost"

    def annotate(
        self,
        models: Path,
        seconds: float | None,
        with_signal: int = signal.SIGKILL,
        flags: list[str] | None = None,
        variables: dict | None = None,
    ) -> int | None:
        """Runs `groundling annotate`, and ends it after these seconds. Returns its exit code, or None if it was ended."""
        command = [self.args.groundling, "annotate", "--project", "7", "--prompt", PHRASES[0], *(flags or [])]
        variables = environment() | self.settings | {"MODEL_DIR": str(models)} | (variables or {})
        with open(self.args.out / "faults.log", "ab") as log:
            process = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
            try:
                return process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(with_signal)
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired as error:
                    process.kill()
                    raise Broken("annotate does not end within 15 s of SIGTERM") from error
                return None

    def killed_annotate(self, with_signal: int = signal.SIGKILL) -> str:
        """Every task gets one prediction, however often annotate is killed and started again."""
        models, kills, rounds = self.new_folder(), 0, 0
        while rounds == 0 or kills < self.args.kills // 4:
            rounds += 1
            self.studio.predictions.clear()
            for _ in range(200):
                status = self.annotate(models, self.random.uniform(0.05, 0.8), with_signal)
                if status is not None:
                    break
                kills += 1
            must(status == 0, f"annotate ended with exit code {status}")
            tasks = sorted(p["task"] for p in self.studio.predictions)
            must(len(set(tasks)) == len(tasks), "a task has two predictions")
            must(len(tasks) == self.studio.tasks, f"{len(tasks)} of {self.studio.tasks} tasks have a prediction")
        return f"ended {kills} times in {rounds} runs over {self.studio.tasks} tasks, no prediction twice, none missing"

    def terminated_annotate(self) -> str:
        """The same after SIGTERM."""
        return self.killed_annotate(signal.SIGTERM)

    def killed_shards(self) -> str:
        """The same for three shards that run at the same time; the last one takes its index from JOB_COMPLETION_INDEX."""
        self.studio.predictions.clear()
        shards = (["--shard", "0/3"], None), (["--shard", "1/3"], None), (["--shard", "3"], "2")
        models, kills, ended = [self.new_folder() for _ in shards], [], []

        def work(number: int):
            flags, index = shards[number]
            draw = random.Random(self.args.seed + number)
            for _ in range(200):
                variables = {"JOB_COMPLETION_INDEX": index} if index else {}
                # the last runs are not killed, so that every shard ends
                seconds = draw.uniform(0.05, 1.2) if len(kills) < self.args.kills // 2 else None
                status = self.annotate(models[number], seconds, flags=flags, variables=variables)
                if status is not None:
                    ended.append(status)
                    return
                kills.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(shards))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        must(ended == [0] * len(shards), f"the shards ended with exit codes {ended}")
        tasks = sorted(p["task"] for p in self.studio.predictions)
        must(len(set(tasks)) == len(tasks), "a task has two predictions")
        must(len(tasks) == self.studio.tasks, f"{len(tasks)} of {self.studio.tasks} tasks have a prediction")
        return f"3 shards, ended {len(kills)} times, {self.studio.tasks} tasks: no prediction twice, none missing"

    # SIGTERM

    def terminated_while_loading(self) -> str:
        """A server ends at once after SIGTERM while it loads models."""
        slowest = 0.0
        for delay in (0.0, 0.01, 0.03, 0.1):
            server = self.start_server(self.new_folder(), wait=False)
            time.sleep(0.05 + delay)
            slowest = max(slowest, self.seconds_to_end(server))
        return f"ended within {slowest:.1f} s"

    def terminated_while_downloading(self) -> str:
        """A server ends at once after SIGTERM while it downloads models."""
        with socket.socket() as hub:
            hub.bind(("127.0.0.1", 0))
            hub.listen()
            endpoint = f"http://127.0.0.1:{hub.getsockname()[1]}"
            models = self.new_folder()
            settings = {
                "DETECTOR": "owner/model",
                "HF_HUB_OFFLINE": "0",
                "HF_ENDPOINT": endpoint,
                "HF_HOME": str(models),
            }
            server = self.start_server(models, settings, wait=False)
            hub.settimeout(20)
            hub.accept()
            seconds = self.seconds_to_end(server)
        return f"ended within {seconds:.1f} s"

    def terminated_in_a_batch(self) -> str:
        """After SIGTERM, a batch is answered with the tasks that are computed."""
        server, responses = self.start_server(self.new_folder()), []
        tasks = [task(i, self.studio.image(i % 40)) for i in range(400)]
        body = request(CONFIG, tasks, "5.1")
        thread = threading.Thread(target=lambda: responses.append(server.send("POST", "/predict", body)))
        thread.start()
        time.sleep(0.6)
        seconds = self.seconds_to_end(server)
        thread.join()
        must(responses, "the batch got no response")
        status, answer = responses[0]
        must(status == 200 and len(answer["results"]) == 400, f"{status}: {str(answer)[:200]}")
        done = sum("result" in result for result in answer["results"])
        must(0 < done < 400, f"{done} of 400 tasks have a result")
        return f"{done} of 400 tasks in the response, ended within {seconds:.1f} s"

    def seconds_to_end(self, server: Server) -> float:
        """Sends SIGTERM. Returns the seconds until the server has ended."""
        started = time.monotonic()
        try:
            status = server.stop(12)
        except subprocess.TimeoutExpired as error:
            server.kill()
            raise Broken("the server does not end within 12 s of SIGTERM") from error
        must(status in (0, -signal.SIGTERM), f"the server ended with exit code {status}")
        return time.monotonic() - started

    # files

    def full_disk(self) -> str:
        """With a full disk prompts are answered, and stored once there is space."""
        models = self.new_folder()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", models], capture_output=True)
        if mounted.returncode:
            raise Skipped("only root can mount a small disk")
        try:
            server = self.start_server(models)
            must(self.type_prompt(server, "1.1", PROMPTS[0])[0] == 200, "an error before the disk was full")
            filler = models / "filler"
            try:
                with open(filler, "wb", buffering=0) as file:
                    while file.write(b"x" * 4096):
                        pass
            except OSError:
                pass
            for i in range(20):
                status, answer = self.type_prompt(server, f"{i + 2}.1", PROMPTS[i + 1])
                must(status == 200, f"with a full disk: {status} {answer}")
            filler.unlink()
            must(self.type_prompt(server, "99.1", PROMPTS[99])[0] == 200, "an error after space was freed")
            self.eventually(
                lambda: len(self.stored_prompts(models)) == 22,
                "prompts that were typed while the disk was full are not stored",
            )
            server.stop()
        finally:
            subprocess.run(["umount", "-l", models], check=True)
        return "22 prompts answered; all are stored once there is space"

    def unwritable_folder(self) -> str:
        """If MODEL_DIR cannot be created or written, only the prompts are not remembered across restarts."""
        server = self.start_server(Path("/proc/groundling"))
        for text in PROMPTS[:3]:
            status, answer = self.type_prompt(server, "1.1", text)
            must(status == 200, f"{status}: {answer}")
        status, answer = server.send("POST", "/setup", {"project": "1.1", "schema": CONFIG})
        must(status == 200 and answer["model_version"], f"{status}: {answer}")
        server.stop()
        return "prompts and setup are answered"

    def locked_database(self) -> str:
        """A database that another process has locked delays an annotator by less than 5 s."""
        models = self.new_folder()
        server = self.start_server(models)
        self.type_prompt(server, "1.1", PROMPTS[0])
        connection = sqlite3.connect(models / DATABASE)
        connection.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        status, answer = self.type_prompt(server, "1.1", PROMPTS[1])
        seconds = time.monotonic() - started
        must(status == 200 and seconds < 5, f"{status} after {seconds:.1f} s: {answer}")
        time.sleep(7)
        connection.rollback()
        connection.close()
        self.type_prompt(server, "2.1", PROMPTS[2])
        self.eventually(
            lambda: self.stored_prompts(models).get("1.1") == PROMPTS[1],
            "the prompt is not stored after the lock was released",
        )
        server.stop()
        return f"answered in {seconds:.1f} s, stored after a lock of 7 s"

    def damaged_database(self) -> str:
        """A damaged database is renamed and a new one is created: while the server runs, and before it starts."""
        models = self.new_folder()
        server = self.start_server(models)
        self.type_prompt(server, "1.1", PROMPTS[0])
        (models / DATABASE).write_bytes(b"this is not a database" * 1000)
        status, answer = self.type_prompt(server, "1.1", PROMPTS[1])
        must(status == 200, f"{status}: {answer}")
        self.eventually(
            lambda: self.stored_prompts(models).get("1.1") == PROMPTS[1], "the prompt is not stored in a new file"
        )
        must((models / f"{DATABASE}.damaged").exists(), "the damaged file was not kept")
        (models / DATABASE).unlink()
        self.type_prompt(server, "2.1", PROMPTS[2])
        self.eventually(
            lambda: self.stored_prompts(models).get("2.1") == PROMPTS[2], "a deleted file is not created again"
        )
        server.stop()
        (models / DATABASE).write_bytes(os.urandom(8192))
        server = self.start_server(models)
        must(self.type_prompt(server, "1.1", PROMPTS[3])[0] == 200, "an error after a start with a damaged file")
        server.stop()
        return "damaged, deleted, and damaged before the start"

    def cut_models(self) -> str:
        """A truncated model file does not affect a running server; at a start the error names it, and once repaired it is loaded."""
        models, detector = self.new_folder(), self.new_folder() / "detector"
        shutil.copytree(REPOSITORY / "models" / "demo" / "detector", detector)
        weights = max(detector.glob("*.safetensors"), key=lambda file: file.stat().st_size)
        complete = weights.read_bytes()
        server = self.start_server(models, {"DETECTOR": str(detector)})
        os.truncate(weights, len(complete) // 3)
        must(self.type_prompt(server, "1.1", PROMPTS[0])[0] == 200, "an error after the file was truncated")
        weights.unlink()
        must(self.type_prompt(server, "1.1", PROMPTS[1], 1)[0] == 200, "an error after the file was removed")
        server.stop()
        for damaged in (complete[: len(complete) // 3], complete[: len(complete) - 1], b"", None):
            weights.unlink(missing_ok=True)
            if damaged is not None:
                weights.write_bytes(damaged)
            server = self.start_server(models, {"DETECTOR": str(detector)}, wait=False)
            reason = self.load_error(server)
            must(str(detector) in reason, f"the error does not name the file: {reason}")
            weights.write_bytes(complete)
            server.wait_until_ready(90)
            must(self.type_prompt(server, "1.1", PROMPTS[2])[0] == 200, "an error after the file was repaired")
            server.stop()
        return "truncated and removed while the server runs; truncated, empty and missing at the start, and repaired without a restart"

    @staticmethod
    def load_error(server: Server) -> str:
        """The reason of /ready why the models are not loaded."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                status, answer = server.send("GET", "/ready")
                if status == 503 and "could not be loaded" in answer["reason"]:
                    return answer["reason"]
            except OSError:
                pass
            time.sleep(0.02)
        server.kill()
        raise Broken("/ready does not report a damaged file")

    # memory

    def hostile_bodies(self) -> str:
        """Hostile bodies are rejected within a second and 100 MiB, beside 300 stalled ones, and annotators are still served."""
        server = self.start_server(self.new_folder())
        self.type_prompt(server, "1.1", PROMPTS[0])
        slowest, peak = 0.0, 0.0
        stalled = []
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 60000000\r\n\r\n{"
        for _ in range(300):
            stalled.append(socket.create_connection(("127.0.0.1", server.port)))
            stalled[-1].sendall(head)
        nested = "<RectangleLabels name='a' toName='image'><Label value='x'/>" * 3000 + "</RectangleLabels>" * 3000
        config = f"<View><Image name='image' value='$image'/>{nested}</View>"
        entities = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + "".join(
            f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9)
        )
        bodies = {
            "a gzip of 250 MB": (gzip.compress(bytes(250_000_000), 9), {"Content-Encoding": "gzip"}),
            "3,000 nested controls": (json.dumps(request(config, [task(1, "/a.png")], "1.1")).encode(), {}),
            "entities": (json.dumps(request(entities + "]><View>&j;</View>", [task(1, "/a.png")], "1.1")).encode(), {}),
            "a million tasks": (b'{"label_config": "<View/>", "tasks": [' + b"{}," * 1_000_000 + b"{}]}", {}),
            "many values": (b'{"label_config": "<View/>", "tasks": [{"data": [' + b"[]," * 9_000_000 + b"0]}]}", {}),
            "deep brackets": (b"[" * 20_000_000, {}),
            "not JSON": (b"x" * 50_000_000, {}),
        }
        for name, (body, headers) in bodies.items():
            before, started = server.memory_mib(), time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            sampler = threading.Thread(target=lambda: seen.extend(self.samples(server, started)))
            seen: list[float] = []
            sampler.start()
            try:
                connection.request("POST", "/predict", body, {"Content-Type": "application/json"} | headers)
                response = connection.getresponse()
                status = response.status
                response.read()
            finally:
                connection.close()
            seconds = time.monotonic() - started
            sampler.join()
            must(400 <= status < 500 or status == 503, f"{name}: {status}")
            must(seconds < (1 if status < 500 else 25), f"{name}: {status} after {seconds:.1f} s")
            must(max(seen) < before + 100, f"{name}: {max(seen) - before:.0f} MiB more")
            slowest, peak = max(slowest, seconds), max(peak, max(seen) - before)
        status, _ = self.type_prompt(server, "1.1", PROMPTS[1])
        must(status == 200, f"an annotator got status {status} while 300 bodies were stalled")
        for connection in stalled:
            connection.close()
        server.stop()
        return f"{len(bodies)} bodies rejected beside 300 stalled ones: at most {slowest:.2f} s and {peak:.0f} MiB"

    @staticmethod
    def samples(server: Server, started: float) -> list[float]:
        """The memory of the server, sampled for a second."""
        seen = []
        while time.monotonic() < started + 1:
            seen.append(server.memory_mib())
            time.sleep(0.01)
        return seen

    def memory_after_a_peak(self) -> str:
        """A minute after many large requests, the memory is at most that of the models, CACHE_BYTES and a margin."""
        cache_mib = 32
        server = self.start_server(self.new_folder(), {"CACHE_BYTES": str(cache_mib << 20), "LABEL_STUDIO_HOST": ""})
        before, peak, stop = server.memory_mib(), [0.0], threading.Event()
        row = bytes(range(256)) * 36
        rows = [row[i % 199 : i % 199 + 9000] for i in range(2000)]
        image = "data:image/png;base64," + base64.b64encode(png(3000, 2000, rows)).decode()
        filler = [{"result": [], "comment": "x" * (30 << 20)}]

        def send_requests(number: int):
            for i in range(4):
                large_task = task(i, image) | {"annotations": filler if number % 2 else []}
                body = request(CONFIG, [large_task], "1.1", prompt(PROMPTS[number * 10 + i]))
                status, answer = server.send("POST", "/predict", body, timeout=300)
                if status not in (200, 503):
                    problems.append(f"{status}: {str(answer)[:200]}")

        def watch_memory():
            while not stop.wait(0.05):
                peak[0] = max(peak[0], server.memory_mib())

        problems: list[str] = []
        threads = [threading.Thread(target=send_requests, args=(i,)) for i in range(12)]
        watcher = threading.Thread(target=watch_memory)
        for thread in [*threads, watcher]:
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        watcher.join()
        must(not problems, "; ".join(problems[:3]))
        time.sleep(60)
        after = server.memory_mib()
        server.stop()
        must(peak[0] > before + 100, f"the requests caused no peak: {peak[0]:.0f} MiB")
        text = f"{before:.0f} MiB with the models, {peak[0]:.0f} MiB at the peak, {after:.0f} MiB a minute later"
        must(after < before + cache_mib + MARGIN_MIB, text)
        return f"{text} (CACHE_BYTES: {cache_mib} MiB)"

    # time

    def clock_steps(self) -> str:
        """A clock that jumps by days in both directions changes nothing."""
        library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
        if library is None:
            raise Skipped("libfaketime is not installed (Debian: faketime)")
        models, clock = self.new_folder(), self.folder / "clock"
        clock.write_text("+0")
        settings = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "WARM_ON_SERVE": "1",
        }
        server, steps = self.start_server(models, settings), ("+3d", "-400d", "+0", "+4000d", "-9000d", "+1h", "-1h")
        for i, step in enumerate(steps):
            clock.write_text(step)
            started = time.monotonic()
            status, answer = self.type_prompt(server, "1.1", PROMPTS[i], i)
            must(status == 200, f"at {step}: {status} {answer}")
            must(time.monotonic() - started < 10, f"more than 10 s at {step}")
            again = self.type_prompt(server, "1.1", PROMPTS[i], i)
            must(
                len(again[1]["results"][0]["result"]) == len(answer["results"][0]["result"]),
                f"another number of regions at {step}",
            )
        self.eventually(
            lambda: self.stored_prompts(models).get("1.1") == PROMPTS[len(steps) - 1], "the last prompt is not stored"
        )
        server.stop()
        return f"{len(steps)} steps of an hour to {9000} days"

    @staticmethod
    def eventually(condition, text: str, seconds: float = 60):
        """Waits until the condition holds; raises Broken after a time limit."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if condition():
                    return
            except sqlite3.Error:
                pass
            time.sleep(0.1)
        raise Broken(text)


ALL = (
    "killed_server",
    "killed_annotate",
    "terminated_annotate",
    "killed_shards",
    "terminated_while_loading",
    "terminated_while_downloading",
    "terminated_in_a_batch",
    "full_disk",
    "unwritable_folder",
    "locked_database",
    "damaged_database",
    "cut_models",
    "hostile_bodies",
    "memory_after_a_peak",
    "clock_steps",
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(ALL))
    parser.add_argument("--skip", nargs="*", default=[], metavar="SCENARIO", help="scenarios that are left out")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--groundling", type=Path, default=REPOSITORY / "target" / "release" / "groundling")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "target" / "simulation")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "faults.log").unlink(missing_ok=True)
    failed = False
    print("| fault | outcome | seconds |\n|---|---|---:|")
    with tempfile.TemporaryDirectory() as folder:
        scenarios = Scenarios(args, Path(folder))
        for name in args.scenarios or ALL:
            if name in args.skip:
                continue
            started = time.monotonic()
            try:
                outcome = getattr(scenarios, name)()
            except Skipped as reason:
                outcome = f"skipped: {reason}"
            except Broken as reason:
                outcome, failed = f"BROKEN: {reason}", True
            finally:
                scenarios.end_servers()
            print(f"| {name.replace('_', ' ')} | {outcome} | {time.monotonic() - started:.0f} |", flush=True)
    if "panicked" in (args.out / "faults.log").read_text(errors="replace"):
        print("a thread panicked: see faults.log")
        failed = True
    sys.exit(failed)


if __name__ == "__main__":
    main()
