"""What happens to the process and its files while it works: `kill -9` at random moments, SIGTERM in every phase, disks
that are full or cannot be written, a database that is locked, damaged or deleted, models that are cut, clocks that jump.

    python3 tests/simulation/faults.py [--kills 100] [--seed 1] [--groundling BINARY] [--out DIR] [SCENARIO...]

Prints a table and ends with 1 if a promise was broken. What needs the rights of root (a small disk) or libfaketime
(clocks) is skipped, and says so, where there are none. Standard library only.
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
# MiB that a server may have a minute after a peak beside its models and what it keeps: buffers that the system's allocator
# does not give back
MARGIN = 64
PROMPTS = [". ".join(chosen) for chosen in permutations(PHRASES, 3)]


class Broken(Exception):
    """A promise that was not kept."""


class Skipped(Exception):
    """A scenario that needs what this machine does not have."""


def must(condition, text: str):
    if not condition:
        raise Broken(text)


class Scenarios:
    def __init__(self, args, folder: Path):
        self.args, self.folder = args, folder
        self.random = random.Random(args.seed)
        self.studio = Studio(40, args.seed, tasks=60)
        self.settings = {"LABEL_STUDIO_HOST": self.studio.url, "LABEL_STUDIO_ACCESS_TOKEN": TOKEN, "IMAGE_TIMEOUT_S": "5"}
        self.count = 0
        self.servers: list[Server] = []

    def fresh(self) -> Path:
        """An empty folder for MODEL_DIR."""
        self.count += 1
        folder = self.folder / f"models-{self.count}"
        folder.mkdir()
        return folder

    def server(self, models: Path, settings: dict | None = None, wait: bool = True) -> Server:
        log = self.args.out / "faults.log"
        server = Server(self.args.groundling, models, log, self.settings | (settings or {}), wait=False)
        self.servers.append(server)
        if wait:
            server.wait_until_ready()
        return server

    def end_servers(self):
        """Ends what a scenario that broke off has left."""
        for server in self.servers:
            if server.process.poll() is None:
                server.kill()
        self.servers.clear()

    def type(self, server: Server, project: str, text: str, image: int = 0) -> tuple[int, dict]:
        body = request(CONFIG, [task(100 + image, self.studio.image(image))], project, prompt(text))
        return server.send("POST", "/predict", body)

    @staticmethod
    def stored(models: Path) -> dict[str, str]:
        """The prompts in the file."""
        file = models / DATABASE
        if not file.exists():
            return {}
        connection = sqlite3.connect(file)
        try:
            must(connection.execute("PRAGMA integrity_check").fetchone() == ("ok",), "the database is damaged")
            return dict(connection.execute("SELECT project, prompt FROM projects"))
        finally:
            connection.close()

    # what is killed

    def killed_server(self) -> str:
        """No prompt that was answered is lost, whenever the server is killed."""
        models, answered, sent = self.fresh(), {}, {}
        prompts = 0

        def types(server: Server, number: int, stop: threading.Event):
            nonlocal prompts
            draw = random.Random(self.random.random())
            while not stop.is_set():
                project, text = f"{number}{draw.randrange(5)}.1", draw.choice(PROMPTS)
                sent[project] = text
                try:
                    if self.type(server, project, text, draw.randrange(40))[0] == 200:
                        answered[project] = text
                        prompts += 1
                except (OSError, http.client.HTTPException, ValueError):
                    return

        for kill in range(self.args.kills):
            server, stop = self.server(models), threading.Event()
            threads = [threading.Thread(target=types, args=(server, i, stop)) for i in range(3)]
            for thread in threads:
                thread.start()
            time.sleep(self.random.uniform(0, 0.8))
            server.kill()
            stop.set()
            for thread in threads:
                thread.join()
            stored = self.stored(models)
            for project, text in answered.items():
                must(
                    stored.get(project) in (text, sent[project]),
                    f"kill {kill}: {project} was answered for {text!r} and has {stored.get(project)!r}",
                )
            # what was being sent may have been stored: it counts from now on
            answered.update((project, text) for project, text in stored.items() if text)
        return f"{self.args.kills} kills, {prompts} prompts answered, 0 lost"

    def annotate(self, models: Path, kill: float | None, how: int = signal.SIGKILL) -> int | None:
        command = [self.args.groundling, "annotate", "--project", "7", "--prompt", PHRASES[0]]
        variables = environment() | self.settings | {"MODEL_DIR": str(models)}
        with open(self.args.out / "faults.log", "ab") as log:
            process = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
            try:
                return process.wait(kill)
            except subprocess.TimeoutExpired:
                process.send_signal(how)
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired as error:
                    process.kill()
                    raise Broken("annotate does not end after SIGTERM") from error
                return None

    def killed_annotate(self, how: int = signal.SIGKILL) -> str:
        """Every task gets its prediction once, however often it is ended and started again."""
        models, kills, rounds = self.fresh(), 0, 0
        while rounds == 0 or kills < self.args.kills // 4:
            rounds += 1
            self.studio.predictions.clear()
            for _ in range(200):
                status = self.annotate(models, self.random.uniform(0.05, 0.8), how)
                if status is not None:
                    break
                kills += 1
            must(status == 0, f"annotate ended with {status}")
            tasks = sorted(p["task"] for p in self.studio.predictions)
            must(len(set(tasks)) == len(tasks), "a task has two predictions")
            must(len(tasks) == self.studio.tasks, f"{len(tasks)} of {self.studio.tasks} tasks have a prediction")
        return f"{kills} times ended in {rounds} runs over {self.studio.tasks} tasks, no prediction twice, none missing"

    def terminated_annotate(self) -> str:
        return self.killed_annotate(signal.SIGTERM)

    # SIGTERM

    def terminated_while_loading(self) -> str:
        """It ends at once."""
        slowest = 0.0
        for delay in (0.0, 0.01, 0.03, 0.1):
            server = self.server(self.fresh(), wait=False)
            time.sleep(0.05 + delay)
            slowest = max(slowest, self.ends(server))
        return f"ended within {slowest:.1f} s"

    def terminated_while_downloading(self) -> str:
        """It ends at once, and the rest of the download is not taken for the whole file."""
        with socket.socket() as hub:
            hub.bind(("127.0.0.1", 0))
            hub.listen()
            endpoint = f"http://127.0.0.1:{hub.getsockname()[1]}"
            models = self.fresh()
            settings = {"DETECTOR": "owner/model", "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HOME": str(models)}
            server = self.server(models, settings, wait=False)
            hub.settimeout(20)
            hub.accept()
            seconds = self.ends(server)
        return f"ended within {seconds:.1f} s"

    def terminated_in_a_batch(self) -> str:
        """The batch is answered as far as it is."""
        server, answers = self.server(self.fresh()), []
        tasks = [task(i, self.studio.image(i % 40)) for i in range(400)]
        body = request(CONFIG, tasks, "5.1")
        thread = threading.Thread(target=lambda: answers.append(server.send("POST", "/predict", body)))
        thread.start()
        time.sleep(0.6)
        seconds = self.ends(server)
        thread.join()
        must(answers, "the batch got no answer")
        status, answer = answers[0]
        must(status == 200 and len(answer["results"]) == 400, f"{status}: {str(answer)[:200]}")
        done = sum("result" in result for result in answer["results"])
        must(0 < done < 400, f"{done} of 400 were done")
        return f"{done} of 400 tasks in the answer, ended within {seconds:.1f} s"

    def ends(self, server: Server) -> float:
        started = time.monotonic()
        try:
            status = server.stop(12)
        except subprocess.TimeoutExpired as error:
            server.kill()
            raise Broken("it does not end after SIGTERM") from error
        must(status in (0, -signal.SIGTERM), f"it ended with {status}")
        return time.monotonic() - started

    # files

    def full_disk(self) -> str:
        """Prompts are answered, and stored once there is room."""
        models = self.fresh()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", models], capture_output=True)
        if mounted.returncode:
            raise Skipped("a small disk can be mounted by root only")
        try:
            server = self.server(models)
            must(self.type(server, "1.1", PROMPTS[0])[0] == 200, "no answer before")
            filler = models / "filler"
            try:
                with open(filler, "wb", buffering=0) as file:
                    while file.write(b"x" * 4096):
                        pass
            except OSError:
                pass
            for i in range(20):
                status, answer = self.type(server, f"{i + 2}.1", PROMPTS[i + 1])
                must(status == 200, f"with a full disk: {status} {answer}")
            filler.unlink()
            must(self.type(server, "99.1", PROMPTS[99])[0] == 200, "no answer after")
            self.eventually(lambda: len(self.stored(models)) == 22, "what was typed meanwhile is not stored")
            server.stop()
        finally:
            subprocess.run(["umount", "-l", models], check=True)
        return "22 prompts answered; all are stored once there is room"

    def unwritable_folder(self) -> str:
        """A folder that cannot be made or written to costs the memory of prompts across restarts, and nothing else."""
        server = self.server(Path("/proc/groundling"))
        for text in PROMPTS[:3]:
            status, answer = self.type(server, "1.1", text)
            must(status == 200, f"{status}: {answer}")
        status, answer = server.send("POST", "/setup", {"project": "1.1", "schema": CONFIG})
        must(status == 200 and answer["model_version"], f"{status}: {answer}")
        server.stop()
        return "prompts and setup are answered"

    def locked_database(self) -> str:
        """An annotator waits little for a database that another process has locked."""
        models = self.fresh()
        server = self.server(models)
        self.type(server, "1.1", PROMPTS[0])
        connection = sqlite3.connect(models / DATABASE)
        connection.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        status, answer = self.type(server, "1.1", PROMPTS[1])
        seconds = time.monotonic() - started
        must(status == 200 and seconds < 5, f"{status} after {seconds:.1f} s: {answer}")
        time.sleep(7)
        connection.rollback()
        connection.close()
        self.type(server, "2.1", PROMPTS[2])
        self.eventually(lambda: self.stored(models).get("1.1") == PROMPTS[1], "the prompt is not stored after the lock")
        server.stop()
        return f"answered in {seconds:.1f} s, stored after a lock of 7 s"

    def damaged_database(self) -> str:
        """It is put aside, and a new one is begun: while the server runs, and before it starts."""
        models = self.fresh()
        server = self.server(models)
        self.type(server, "1.1", PROMPTS[0])
        (models / DATABASE).write_bytes(b"this is no database" * 1000)
        status, answer = self.type(server, "1.1", PROMPTS[1])
        must(status == 200, f"{status}: {answer}")
        self.eventually(lambda: self.stored(models).get("1.1") == PROMPTS[1], "it is not stored in a new file")
        must((models / f"{DATABASE}.damaged").exists(), "the damaged file is gone")
        (models / DATABASE).unlink()
        self.type(server, "2.1", PROMPTS[2])
        self.eventually(lambda: self.stored(models).get("2.1") == PROMPTS[2], "a deleted file is not made again")
        server.stop()
        (models / DATABASE).write_bytes(os.urandom(8192))
        server = self.server(models)
        must(self.type(server, "1.1", PROMPTS[3])[0] == 200, "no answer after a start with a damaged file")
        server.stop()
        return "damaged, deleted and damaged before the start"

    def cut_models(self) -> str:
        """Models in memory do not mind; at the next start the file is named, and once it is whole it is loaded."""
        models, detector = self.fresh(), self.fresh() / "detector"
        shutil.copytree(REPOSITORY / "models" / "demo" / "detector", detector)
        weights = max(detector.glob("*.safetensors"), key=lambda file: file.stat().st_size)
        whole = weights.read_bytes()
        server = self.server(models, {"DETECTOR": str(detector)})
        os.truncate(weights, len(whole) // 3)
        must(self.type(server, "1.1", PROMPTS[0])[0] == 200, "no answer after the file was cut")
        weights.unlink()
        must(self.type(server, "1.1", PROMPTS[1], 1)[0] == 200, "no answer after the file was removed")
        server.stop()
        for damaged in (whole[: len(whole) // 3], whole[: len(whole) - 1], b"", None):
            weights.unlink(missing_ok=True)
            if damaged is not None:
                weights.write_bytes(damaged)
            server = self.server(models, {"DETECTOR": str(detector)}, wait=False)
            reason = self.reason(server)
            must(str(detector) in reason, f"the file is not named: {reason}")
            weights.write_bytes(whole)
            server.wait_until_ready(90)
            must(self.type(server, "1.1", PROMPTS[2])[0] == 200, "no answer after the file was whole again")
            server.stop()
        return "cut and removed under a running server; cut, empty and missing at the start, and mended without a restart"

    @staticmethod
    def reason(server: Server) -> str:
        """Why the models are not loaded."""
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
        raise Broken("a damaged file is not reported")

    # memory

    def hostile_bodies(self) -> str:
        """Each is refused within a second and 100 MiB, while hundreds of stalled ones are open, and annotators go on."""
        server = self.server(self.fresh())
        self.type(server, "1.1", PROMPTS[0])
        slowest, most = 0.0, 0.0
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
            "no JSON": (b"x" * 50_000_000, {}),
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
            slowest, most = max(slowest, seconds), max(most, max(seen) - before)
        status, _ = self.type(server, "1.1", PROMPTS[1])
        must(status == 200, f"an annotator was answered {status} while 300 bodies were stalled")
        for connection in stalled:
            connection.close()
        server.stop()
        return f"{len(bodies)} bodies refused beside 300 stalled ones: at most {slowest:.2f} s and {most:.0f} MiB"

    @staticmethod
    def samples(server: Server, started: float) -> list[float]:
        """The memory of the server for a while."""
        seen = []
        while time.monotonic() < started + 1:
            seen.append(server.memory_mib())
            time.sleep(0.01)
        return seen

    def memory_after_a_peak(self) -> str:
        """A minute after the last of many large requests, memory is that of the models, the store and a margin."""
        store = 32
        server = self.server(self.fresh(), {"CACHE_BYTES": str(store << 20), "LABEL_STUDIO_HOST": ""})
        before, most, stop = server.memory_mib(), [0.0], threading.Event()
        row = bytes(range(256)) * 36
        rows = [row[i % 199 : i % 199 + 9000] for i in range(2000)]
        image = "data:image/png;base64," + base64.b64encode(png(3000, 2000, rows)).decode()
        filler = [{"result": [], "comment": "x" * (30 << 20)}]

        def sends(number: int):
            for i in range(4):
                work = task(i, image) | {"annotations": filler if number % 2 else []}
                body = request(CONFIG, [work], "1.1", prompt(PROMPTS[number * 10 + i]))
                status, answer = server.send("POST", "/predict", body, timeout=300)
                if status not in (200, 503):
                    problems.append(f"{status}: {str(answer)[:200]}")

        def watches():
            while not stop.wait(0.05):
                most[0] = max(most[0], server.memory_mib())

        problems: list[str] = []
        threads = [threading.Thread(target=sends, args=(i,)) for i in range(12)]
        watcher = threading.Thread(target=watches)
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
        must(most[0] > before + 100, f"this was no peak: {most[0]:.0f} MiB")
        text = f"{before:.0f} MiB with the models, {most[0]:.0f} MiB at the peak, {after:.0f} MiB a minute later"
        must(after < before + store + MARGIN, text)
        return f"{text} (store: {store} MiB)"

    # time

    def clock_steps(self) -> str:
        """A clock that jumps by days in both directions changes nothing."""
        library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
        if library is None:
            raise Skipped("libfaketime is not installed (Debian: faketime)")
        models, clock = self.fresh(), self.folder / "clock"
        clock.write_text("+0")
        settings = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "WARM_ON_SERVE": "1",
        }
        server, steps = self.server(models, settings), ("+3d", "-400d", "+0", "+4000d", "-9000d", "+1h", "-1h")
        for i, step in enumerate(steps):
            clock.write_text(step)
            started = time.monotonic()
            status, answer = self.type(server, "1.1", PROMPTS[i], i)
            must(status == 200, f"at {step}: {status} {answer}")
            must(time.monotonic() - started < 10, f"slow at {step}")
            again = self.type(server, "1.1", PROMPTS[i], i)
            must(len(again[1]["results"][0]["result"]) == len(answer["results"][0]["result"]), f"another answer at {step}")
        self.eventually(lambda: self.stored(models).get("1.1") == PROMPTS[len(steps) - 1], "the last prompt is not stored")
        server.stop()
        return f"{len(steps)} steps of an hour to {9000} days"

    @staticmethod
    def eventually(is_so, text: str, seconds: float = 60):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if is_so():
                    return
            except sqlite3.Error:
                pass
            time.sleep(0.1)
        raise Broken(text)


ALL = (
    "killed_server",
    "killed_annotate",
    "terminated_annotate",
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
        print("something panicked: see faults.log")
        failed = True
    sys.exit(failed)


if __name__ == "__main__":
    main()
