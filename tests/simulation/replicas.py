"""Two replicas with one PostgreSQL database behind a load balancer: prompts, failures of a replica and of the database, caches.

    python3 tests/simulation/replicas.py [--seed 1] [--groundling BINARY | --image IMAGE] [--nginx] [--out DIR] [SCENARIO...]

Each method of `Scenarios` is one; its docstring is the promise. Prints a table; the exit code is 1 if a promise was broken.
Starts Debian's PostgreSQL (package `postgresql`) on a free port of 127.0.0.1, with its data in a folder of its own. With
`--image`, the replicas are containers; with `--nginx`, Debian's nginx (package `nginx-light`) is the balancer that takes them
in turn. Needs the standard library only.
"""

import argparse
import glob
import hashlib
import http.client
import http.server
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from itertools import permutations
from pathlib import Path

from faults import Broken, must
from server import REPOSITORY, ContainerServer, Server, click, prompt, request, task
from studio import CONFIG, PHRASES, TOKEN, Studio

PROMPTS = [". ".join(chosen) for chosen in permutations(PHRASES, 2)]
IMAGES = 60
USER, PASSWORD, DATABASE = "groundling", "a-password-for-tests", "groundling"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Postgres:
    """A PostgreSQL server of its own. As root, it runs as the user `postgres`, because it refuses to run as root."""

    def __init__(self, folder: Path):
        programs = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
        initdb = programs[-1] if programs else shutil.which("initdb")
        if not initdb:
            raise SystemExit("PostgreSQL is not installed: install the package postgresql")
        self.programs, self.port, self.data = Path(initdb).parent, free_port(), folder / "postgres"
        self.data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            folder.chmod(0o755)
            shutil.chown(self.data, "postgres")
        password = folder / "password"
        password.write_text(PASSWORD)
        self.run("initdb", "--username", USER, "--pwfile", str(password), "--auth", "scram-sha-256", "--no-sync")
        self.start()

    def run(self, program: str, *arguments: str):
        """Runs a program of PostgreSQL on the data."""
        command = [str(self.programs / program), "--pgdata", str(self.data), *arguments]
        if os.geteuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        done = subprocess.run(command, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        must(done.returncode == 0, f"{program} failed: {done.stderr}")

    def start(self):
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories='' -c fsync=off"
        log = str(self.data / "server.log")
        self.run("pg_ctl", "start", "--wait", "--log", log, "--options", options)

    def stop(self, mode: str = "immediate"):
        """Stops it; `immediate` is as if it were killed."""
        self.run("pg_ctl", "stop", "--wait", "--mode", mode)

    def url(self, database: str = "postgres") -> str:
        return f"postgres://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def query(self, text: str) -> list[list[str]]:
        """The rows of a query, their columns as texts."""
        command = [str(self.programs / "psql"), self.url(), "--no-align", "--tuples-only", "--field-separator=\t"]
        done = subprocess.run([*command, "--command", text], capture_output=True, text=True)
        must(done.returncode == 0, f"the query failed: {done.stderr}")
        return [line.split("\t") for line in done.stdout.splitlines()]


class Balancer:
    """Forwards each request to one of the replicas, and to another one if the first cannot be reached.

    `choose(body, count)` is the index of the first choice; `None` takes the replicas in turn.
    """

    def __init__(self, ports: list[int], choose=None):
        self.failed_in_flight = 0
        turn, lock = [0], threading.Lock()
        balancer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_arguments):
                pass

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if choose:
                    first = choose(body, len(ports))
                else:
                    with lock:
                        turn[0] += 1
                        first = turn[0]
                for attempt in range(len(ports)):
                    port = ports[(first + attempt) % len(ports)]
                    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                    try:
                        connection.connect()
                    except OSError:
                        continue  # the replica is gone; nothing was sent
                    try:
                        connection.request("POST", self.path, body, {"Content-Type": "application/json"})
                        response = connection.getresponse()
                        text, status = response.read(), response.status
                    except (OSError, http.client.HTTPException):
                        # the replica had the request: it may have been applied, so it is not sent again
                        with lock:
                            balancer.failed_in_flight += 1
                        text, status = b"{}", 502
                    finally:
                        connection.close()
                    break
                else:
                    text, status = b"{}", 503
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def send(self, path: str, body: dict) -> tuple[int, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
            # nginx's own errors are pages
            return response.status, json.loads(text) if response.status == 200 else {"text": text.decode()}
        finally:
            connection.close()


NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream replicas {{
        {servers}
    }}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 32m;
        location / {{
            proxy_pass http://replicas;
            # on loopback, groundling answers only to the names of this machine
            proxy_set_header Host $http_host;
            proxy_connect_timeout 2s;
            proxy_read_timeout 300s;
            # the next replica gets a request that this one did not receive
            proxy_next_upstream error timeout;
        }}
    }}
}}
"""


class Nginx(Balancer):
    """The same with nginx, which takes the replicas in turn."""

    def __init__(self, ports: list[int], folder: Path):
        # Debian has it in a folder that is not in the PATH of every user
        program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
        if not program:
            raise SystemExit("nginx is not installed: install the package nginx-light")
        self.failed_in_flight, self.port = None, free_port()
        folder = Path(tempfile.mkdtemp(dir=folder))
        servers = "\n        ".join(f"server 127.0.0.1:{port};" for port in ports)
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=self.port, servers=servers))
        self.process = subprocess.Popen([program, "-c", folder / "nginx.conf", "-p", folder, "-e", "stderr"])
        deadline = time.monotonic() + 10
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            must(time.monotonic() < deadline and self.process.poll() is None, "nginx does not listen")
            time.sleep(0.05)

    def close(self):
        self.process.terminate()
        self.process.wait(20)


class Scenarios:
    """One method per promise. It returns the outcome for the table, or raises Broken."""

    def __init__(self, args, folder: Path):
        self.args, self.folder = args, folder
        self.random = random.Random(args.seed)
        self.studio = Studio(IMAGES, args.seed, tasks=IMAGES)
        self.postgres = Postgres(folder)
        self.settings = {
            "LABEL_STUDIO_HOST": self.studio.url,
            "LABEL_STUDIO_ACCESS_TOKEN": TOKEN,
            "DATABASE_URL": self.postgres.url(),
        }
        self.servers: list[Server] = []

    def start(self, settings: dict | None = None) -> Server:
        models = Path(tempfile.mkdtemp(dir=self.folder))
        kind, program = (ContainerServer, self.args.image) if self.args.image else (Server, self.args.groundling)
        server = kind(program, models, self.args.out / "replicas.log", self.settings | (settings or {}))
        self.servers.append(server)
        return server

    def balancer(self, servers: list[Server]) -> Balancer:
        """A balancer that takes the replicas in turn."""
        ports = [server.port for server in servers]
        return Nginx(ports, self.folder) if self.args.nginx else Balancer(ports)

    def end(self):
        for server in self.servers:
            if server.process.poll() is None:
                server.kill()
        self.servers.clear()

    def body(self, project: str, image: int, context=None) -> dict:
        return request(CONFIG, [task(100 + image, self.studio.image(image))], project, context)

    def version(self, server: Server, project: str) -> str:
        """The model version of a project, which contains a digest of its prompt."""
        setup = {"project": project, "schema": CONFIG, "hostname": "", "access_token": "", "extra_params": None}
        status, answer = server.send("POST", "/setup", setup)
        must(status == 200, f"/setup answered {status}")
        return answer["model_version"]

    # promises

    def shared_prompt(self) -> str:
        """A prompt that was typed through one replica is known to the other within a second."""
        replicas, seconds = [self.start(), self.start()], []
        for number in range(20):
            project = f"{number}.1"
            one, other = replicas if number % 2 else replicas[::-1]
            status, answer = one.send("POST", "/predict", self.body(project, number, prompt(PROMPTS[number])))
            started = time.monotonic()
            must(status == 200, f"the prompt was answered with {status}: {answer}")
            version = self.version(one, project)
            while self.version(other, project) != version:
                must(time.monotonic() < started + 5, f"the other replica does not know {PROMPTS[number]!r} after 5 s")
                time.sleep(0.005)
            seconds.append(time.monotonic() - started)
        must(max(seconds) < 1, f"the other replica knew a prompt only after {max(seconds):.2f} s")
        return f"20 prompts, known after {sorted(seconds)[10] * 1000:.0f} ms (median), {max(seconds) * 1000:.0f} ms at most"

    def database_restart(self) -> str:
        """While the database is away, both replicas go on; when it is back, it has each project's last prompt."""
        replicas, stop = [self.start(), self.start()], threading.Event()
        last, slowest, answers, problems = {}, [0.0], [0], []

        def annotate(number: int):
            draw, server = random.Random(self.args.seed + number), replicas[number % 2]
            while not stop.is_set():
                project, text = f"{1000 + number * 10 + draw.randrange(3)}.1", draw.choice(PROMPTS)
                started = time.monotonic()
                try:
                    status, answer = server.send("POST", "/predict", self.body(project, draw.randrange(IMAGES), prompt(text)))
                except (OSError, http.client.HTTPException) as error:
                    problems.append(str(error))
                    return
                slowest[0] = max(slowest[0], time.monotonic() - started)
                if status != 200:
                    problems.append(f"{status}: {answer}")
                    return
                last[project] = text
                answers[0] += 1

        threads = [threading.Thread(target=annotate, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(2)
        self.postgres.stop()
        time.sleep(4)
        # a replica that starts while the database is away
        late = self.start()
        self.postgres.start()
        time.sleep(2)
        stop.set()
        for thread in threads:
            thread.join()
        must(not problems, f"a request failed: {problems[:1]}")
        deadline = time.monotonic() + 10
        while True:
            rows = self.postgres.query("SELECT project, prompt FROM groundling_projects")
            stored = {row[0]: row[1] for row in rows}
            missing = [project for project, text in last.items() if stored.get(project) != text]
            versions = {project: {self.version(server, project) for server in (*replicas, late)} for project in last}
            differing = [project for project, found in versions.items() if len(found) > 1]
            if not missing and not differing:
                break
            must(time.monotonic() < deadline, f"after 10 s, not stored: {missing}; replicas differ: {differing}")
            time.sleep(0.1)
        return f"{answers[0]} prompts of {len(last)} projects answered, {slowest[0]:.1f} s at most, none lost"

    def killed_replica(self) -> str:
        """When a replica is killed under load, only the requests that it was answering fail, and no answered prompt is lost."""
        replicas, stop = [self.start(), self.start()], threading.Event()
        balancer = self.balancer(replicas)
        last, answers, failures, lock = {}, [0], [], threading.Lock()

        def annotate(number: int):
            draw = random.Random(self.args.seed + number)
            while not stop.is_set():
                project, text = f"{2000 + number}.1", draw.choice(PROMPTS)
                body = self.body(project, draw.randrange(IMAGES), prompt(text))
                status, _ = balancer.send("/predict", body)
                with lock:
                    if status == 200:
                        last[project] = {text}
                        answers[0] += 1
                    else:
                        failures.append(status)
                        # it may have been stored before the replica was killed
                        last.setdefault(project, set()).add(text)

        threads = [threading.Thread(target=annotate, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(2)
        replicas[0].kill()
        time.sleep(2)
        stop.set()
        for thread in threads:
            thread.join()
        balancer.close()
        in_flight = balancer.failed_in_flight
        must(in_flight is None or len(failures) == in_flight, f"failures: {failures}")
        must(
            len(failures) <= len(threads),
            f"{len(failures)} requests failed ({failures[:8]}...), but only {len(threads)} were sent at a time",
        )
        rows = self.postgres.query("SELECT project, prompt FROM groundling_projects")
        stored = {row[0]: row[1] for row in rows}
        lost = [project for project, texts in last.items() if stored.get(project) not in texts]
        must(not lost, f"the last prompts of {lost} are lost")
        return f"{answers[0]} prompts answered, {len(failures)} failed with the replica, none lost"

    def caches(self) -> str:
        """Each image's requests go to one replica if the balancer hashes the image's address: the caches then hit as often
        as those of one replica."""
        rates = {}
        for name, count, choose in (
            ("one replica", 1, None),
            ("two, in turn", 2, None),
            ("two, by image", 2, by_image),
        ):
            # room for the embeddings of about a third of the images in each replica
            replicas = [self.start({"CACHE_BYTES": str(CACHE_BYTES)}) for _ in range(count)]
            balancer = Balancer([server.port for server in replicas], choose)
            draw = random.Random(self.args.seed)
            # annotators work on an image for a while: a prompt, and then clicks
            for _ in range(80):
                image = draw.randrange(IMAGES)
                label = PHRASES[0]
                contexts = [prompt(draw.choice(PROMPTS)), *(click(*draw.choices(range(20, 80), k=2), label) for _ in range(3))]
                for context in contexts:
                    status, answer = balancer.send("/predict", self.body("3000.1", image, context))
                    must(status == 200, f"{name}: {status} {answer}")
            hits, misses = (sum(self.counter(server, kind) for server in replicas) for kind in ("hits", "misses"))
            rates[name] = hits / (hits + misses)
            balancer.close()
            self.end()
        must(
            rates["two, by image"] > rates["two, in turn"],
            f"hashing by image does not help: {rates}",
        )
        return "hits of image embeddings: " + ", ".join(f"{name} {100 * rate:.0f} %" for name, rate in rates.items())

    @staticmethod
    def counter(server: Server, kind: str) -> int:
        metrics = server.send("GET", "/metrics")[1]["text"]
        found = re.search(rf'^groundling_store_{kind}_total{{stage="image_embeddings"}} (\d+)', metrics, re.MULTILINE)
        return int(found[1]) if found else 0


CACHE_BYTES = 64 << 20


def by_image(body: bytes, count: int) -> int:
    """A replica by the image of the first task."""
    image = json.loads(body)["tasks"][0]["data"]["image"]
    return int(hashlib.sha256(image.encode()).hexdigest(), 16) % count


ALL = ("shared_prompt", "database_restart", "killed_replica", "caches")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(ALL))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--groundling", type=Path, default=REPOSITORY / "target" / "release" / "groundling")
    parser.add_argument("--image", help="an image of Docker; the replicas are containers")
    parser.add_argument("--nginx", action="store_true", help="nginx is the balancer that takes the replicas in turn")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "target" / "simulation")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "replicas.log").unlink(missing_ok=True)
    failed = False
    print("| promise | outcome | seconds |\n|---|---|---:|")
    with tempfile.TemporaryDirectory() as folder:
        scenarios = Scenarios(args, Path(folder))
        try:
            for name in args.scenarios or ALL:
                started = time.monotonic()
                try:
                    outcome = getattr(scenarios, name)()
                except Broken as reason:
                    outcome, failed = f"BROKEN: {reason}", True
                finally:
                    scenarios.end()
                print(f"| {name.replace('_', ' ')} | {outcome} | {time.monotonic() - started:.0f} |", flush=True)
        finally:
            scenarios.postgres.stop()
    log = (args.out / "replicas.log").read_text(errors="replace")
    if "panicked" in log:
        print("a thread panicked: see replicas.log")
        failed = True
    if PASSWORD in log:
        print("the log contains the database's password: see replicas.log")
        failed = True
    sys.exit(failed)


if __name__ == "__main__":
    main()
