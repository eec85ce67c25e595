"""Starts and stops Label Studio, groundling and a web server for the scenarios."""

import functools
import http.server
import os
import pty
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Callable, Optional, Tuple

import requests

ROOT = Path(__file__).resolve().parents[2]
GROUNDLING = Path(os.environ.get("GROUNDLING_BIN", ROOT / "target/release/groundling")).resolve()
USER, PASSWORD = "user@example.com", "a long password"
HEALTH_SECONDS, STUDIO_SECONDS = 60, 240


class CheckFailed(Exception):
    """A failed check; the message says what is wrong."""


class Skipped(Exception):
    """A scenario that this Label Studio or this machine cannot run; the message says why."""


def ensure(condition: Any, message: str) -> None:
    """Raises CheckFailed with the message unless the condition holds."""
    if not condition:
        raise CheckFailed(message)


def until(what: str, probe: Callable[[], Any], seconds: float = 30, pause: float = 0.3) -> Any:
    """Calls the probe until it returns a true value, and returns that."""
    end = time.monotonic() + seconds
    while True:
        answer = probe()
        if answer:
            return answer
        ensure(time.monotonic() < end, f"{what}: not within {seconds} s")
        time.sleep(pause)


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Process:
    """A server on 127.0.0.1 and its log."""

    name: str
    url: str
    environment: dict
    log: Path
    running: subprocess.Popen

    def log_text(self) -> str:
        """The log so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for_health(self, seconds: float, ready: Callable[[dict], bool] = lambda health: True) -> None:
        """Waits until `/health` returns 200 and `ready` accepts its body."""

        user, password = (self.environment.get(f"BASIC_AUTH_{part}", "") for part in ("USER", "PASS"))
        # here in UTF-8; Label Studio sends them in Latin-1, and both must work
        credentials = (user.encode(), password.encode()) if user else None

        def probe() -> bool:
            code = self.running.poll()
            ensure(code is None, f"{self.name} ended with exit code {code}; see {self.log}")
            try:
                answer = requests.get(f"{self.url}/health", auth=credentials, timeout=2)
                return answer.status_code == 200 and ready(answer.json())
            except requests.RequestException:
                return False

        until(f"{self.name} at {self.url}/health", probe, seconds, pause=0.5)

    def stop(self) -> None:
        """Ends the process and its children."""
        if self.running.poll() is None:
            os.killpg(self.running.pid, signal.SIGTERM)
            try:
                self.running.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.running.pid, signal.SIGKILL)
                self.running.wait(10)


@dataclass
class World:
    """Shared by the scenarios: the folder for results, the servers, and the secrets that no log may show."""

    out: Path
    studio: Optional[Process] = None
    legacy: Optional[Process] = None
    pat: Optional[Process] = None
    api: Any = None
    browser: Any = None
    secrets: dict = field(default_factory=dict)
    processes: list = field(default_factory=list)
    images: Optional[http.server.ThreadingHTTPServer] = None

    @property
    def files(self) -> Path:
        """Label Studio's document root for local files."""
        return self.out / "files"

    @property
    def logs(self) -> Path:
        """Where every process' log goes."""
        return self.out / "logs"

    def spawn(self, name: str, command: list, port: int, environment: dict) -> Process:
        """A server in a process group of its own."""
        log = self.logs / f"{name}.log"
        with log.open("w") as sink:
            running = subprocess.Popen(
                [str(part) for part in command],
                env=os.environ | environment,
                cwd=self.out,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        process = Process(name, f"http://127.0.0.1:{port}", environment, log, running)
        self.processes.append(process)
        return process

    def start_label_studio(self) -> None:
        """Starts Label Studio with one user, who has a known legacy token."""
        port = free_port()
        self.files.mkdir(parents=True, exist_ok=True)
        self.secrets["legacy token"] = secrets.token_hex(20)
        user = ["--username", USER, "--password", PASSWORD, "--user-token", self.secrets["legacy token"]]
        self.studio = self.spawn_label_studio("label-studio", port, self.out / "data", f"http://127.0.0.1:{port}", *user)

    def spawn_label_studio(
        self, name: str, port: int, data: Path, host: str, *arguments: str, **more: str
    ) -> Process:
        """Starts a Label Studio with local files and access to backends on this machine. `host` is the address that it has for
        users."""
        environment = {
            "ML_BLOCK_LOCAL_IP": "false",
            "SSRF_PROTECTION_ENABLED": "false",
            "COLLECT_ANALYTICS": "false",
            "LATEST_VERSION_CHECK": "false",
            "SENTRY_DSN": "",
            "FRONTEND_SENTRY_DSN": "",
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(self.files),
            "LABEL_STUDIO_BASE_DATA_DIR": str(data),
            "LABEL_STUDIO_HOST": host,
        }
        program = Path(sys.executable).with_name("label-studio")
        command = [
            program,
            "start",
            "--no-browser",
            "--internal-host",
            "127.0.0.1",
            "--port",
            port,
            "--data-dir",
            data,
            *arguments,
        ]
        return self.spawn(name, command, port, environment | more)

    def groundling_environment(self, name: str, token: str, port: int) -> dict:
        """The settings of a groundling with the demo models and a new MODEL_DIR."""
        models = self.out / "models" / name
        models.mkdir(parents=True, exist_ok=True)
        return {
            "PORT": str(port),
            "LABEL_STUDIO_HOST": self.studio.url,
            "LABEL_STUDIO_ACCESS_TOKEN": token,
            "MODEL_DIR": str(models),
            "DETECTOR": "demo",
            "SEGMENTER": "demo",
            "ALLOWED_IMAGE_HOSTS": "127.0.0.1",
            "LOG_LEVEL": "debug",
        }

    def start_groundling(self, name: str, token: str, port: Optional[int] = None, **more: str) -> Process:
        """Starts a groundling, by default on a free port, and waits until its models are loaded."""
        port = port or free_port()
        environment = self.groundling_environment(name, token, port) | more
        process = self.spawn(f"groundling-{name}", [GROUNDLING], port, environment)
        process.wait_for_health(HEALTH_SECONDS, lambda health: health.get("models") == "ready")
        return process

    def run_groundling(
        self, log: str, arguments: list, environment: dict, answer: Optional[str] = None, seconds: float = 120
    ) -> Tuple[int, str]:
        """Runs a groundling command; with an answer, on a terminal on which that is typed. Returns its exit code and its
        output, which is also a log file."""
        command = [str(part) for part in [GROUNDLING, *arguments]]
        path = self.logs / f"groundling-{log}.log"
        with path.open("wb", buffering=0) as sink:
            output, reader = sink, None
            if answer is not None:
                terminal, output = pty.openpty()
                os.write(terminal, f"{answer}\n".encode())
                reader = threading.Thread(target=copy_terminal, args=(terminal, sink), daemon=True)
            running = subprocess.Popen(
                command,
                env=os.environ | environment,
                cwd=self.out,
                stdin=subprocess.DEVNULL if reader is None else output,
                stdout=output,
                stderr=output,
            )
            if reader is not None:
                os.close(output)
                reader.start()
            try:
                code = running.wait(seconds)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait(10)
                raise CheckFailed(f"groundling {' '.join(command[1:])}: it did not end within {seconds} s; see {path}")
            if reader is not None:
                reader.join(10)
        return code, path.read_text(encoding="utf-8", errors="replace")

    def serve_images(self, folder: Path) -> str:
        """Starts a web server for a folder. Returns its URL."""
        handler = functools.partial(QuietHandler, directory=str(folder))
        self.images = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.images.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.images.server_port}"

    def stop(self) -> None:
        """Ends everything that was started, in reverse order."""
        try:
            if self.browser is not None:
                self.browser.close()
            if self.images is not None:
                self.images.shutdown()
        finally:
            for process in reversed(self.processes):
                process.stop()


def copy_terminal(terminal: int, sink: BinaryIO) -> None:
    """Copies the output on a terminal to a file, until the programs on it have ended."""
    try:
        while text := os.read(terminal, 4096):
            sink.write(text)
    except OSError:
        pass  # on Linux this is the end
    finally:
        os.close(terminal)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves the files of a folder without logging requests."""

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""
