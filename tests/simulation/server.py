"""A groundling process on a free port of 127.0.0.1, and the bodies of its requests."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# variables that a developer may have set; the process must not inherit them
NOT_INHERITED = re.compile(
    r"^(MODEL_|HF_|SAM_|GROUNDING|LABEL_STUDIO|BASIC_AUTH|CACHE_|WARM_|MAX_|DATABASE_|DETECTOR|SEGMENTER|PRECISION)"
)


def environment() -> dict:
    """The environment variables of a groundling with the demo models and without the hub."""
    inherited = {name: value for name, value in os.environ.items() if not NOT_INHERITED.match(name)}
    return inherited | {
        "NO_COLOR": "1",
        "DETECTOR": "demo",
        "SEGMENTER": "demo",
        "HF_HUB_OFFLINE": "1",
        "NO_PROXY": "127.0.0.1",
    }


class Server:
    """A running `groundling serve`."""

    def __init__(self, program: Path | str, models: Path, log: Path, settings: dict | None = None, wait: bool = True):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = open(log, "ab")  # noqa: SIM115, open as long as the process runs
        variables = {"PORT": str(self.port), "MODEL_DIR": str(models), "LOG_FORMAT": "json"} | (settings or {})
        self.process = self.launch(program, models, variables)
        if wait:
            self.wait_until_ready()

    def launch(self, program: Path | str, _models: Path, variables: dict) -> subprocess.Popen:
        """Starts the process with these settings in its environment."""
        return subprocess.Popen(
            [program, "serve"], stderr=self.log, stdout=self.log, env=environment() | variables
        )

    def wait_until_ready(self, seconds: float = 60):
        """Waits until the models are loaded."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended with exit code {self.process.returncode}")
            try:
                if self.send("GET", "/ready")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.01)
        raise SystemExit(f"the server is not ready after {seconds} s")

    def send(self, method: str, path: str, body=None, timeout: float = 120) -> tuple[int, dict]:
        """Sends a request. Returns the status and the JSON of the response; raises OSError or HTTPException without one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            data = json.dumps(body).encode() if body is not None else None
            connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text[:1] in b"{[" else {"text": text.decode()}
        finally:
            connection.close()

    def abandon(self, path: str, body, after: float):
        """Sends a request, and closes the connection after this many seconds without reading the response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        time.sleep(after)
        connection.close()

    def memory_mib(self) -> float:
        """Resident memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def kill(self):
        """Ends the process with SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)
        self.log.close()

    def stop(self, seconds: float = 20) -> int:
        """Ends the process with SIGTERM. Returns its exit code."""
        self.process.terminate()
        status = self.process.wait(seconds)
        self.log.close()
        return status


class ContainerServer(Server):
    """A running `groundling serve` in a container, whose program is the name of an image. It shares the host's network, and
    has nothing else of the host but the folder of its models; its root is read-only."""

    def launch(self, program: Path | str, models: Path, variables: dict) -> subprocess.Popen:
        self.name = f"groundling-replica-{self.port}"
        models.chmod(0o777)
        # values are in the environment of `docker`, because a command line is visible to other users
        variables = {"DETECTOR": "demo", "SEGMENTER": "demo", "HF_HUB_OFFLINE": "1", "BIND_ADDRESS": "127.0.0.1"} | variables
        command = ["docker", "run", "--rm", "--name", self.name, "--network", "host", "--read-only", "--tmpfs", "/tmp"]
        command += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--volume", f"{models}:{models}"]
        command += [f"--env={name}" for name in variables]
        return subprocess.Popen(
            [*command, program, "serve"], stderr=self.log, stdout=self.log, env=os.environ | variables
        )

    def kill(self):
        subprocess.run(["docker", "kill", self.name], check=True, capture_output=True)
        self.process.wait(20)
        self.log.close()


def request(config: str, tasks: list[dict], project: str, context=None) -> dict:
    """The body of `/predict`."""
    return {
        "tasks": tasks,
        "project": project,
        "label_config": config,
        "params": {"login": None, "password": None, "context": context},
    }


def task(number: int, image: str) -> dict:
    """A task of a request."""
    return {"id": number, "data": {"image": image}, "annotations": [], "drafts": []}


def prompt(text: str) -> dict:
    """The context of a request after a prompt was typed."""
    region = {"type": "textarea", "from_name": "prompt", "to_name": "image", "id": "a", "value": {"text": [text]}}
    return {"result": [region]}


def click(x: float, y: float, label: str) -> dict:
    """The context of a request after a click with a smart tool, in percent of the image."""
    value = {"x": x, "y": y, "width": 0.2, "keypointlabels": [label]}
    region = {"type": "keypointlabels", "from_name": "label3", "to_name": "image", "id": "c", "is_positive": True}
    return {"result": [region | {"value": value}]}
