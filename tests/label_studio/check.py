"""groundling beside the real Label Studio: connect, type a prompt, read boxes and masks back.

    pip install -r tests/label_studio/requirements.txt
    cargo build --release
    python tests/label_studio/check.py [--out FOLDER]

Starts Label Studio and groundling on free ports of 127.0.0.1 with fresh data, uploads the example picture, connects the
backend, sends a prompt as the page does, accepts the answer as an annotation, retrieves predictions in a batch, and
decodes every mask with Label Studio's own decoder. Exits with 1 at the first thing that is not as it should be.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "examples/images/shapes.png"
TOKEN = "0123456789abcdef0123456789abcdef01234567"
WIDTH, HEIGHT = 640, 480
LABELS = ("Red Circle", "Blue Star")
CONFIG = (
    (ROOT / "examples/label-studio/labeling_config.xml")
    .read_text(encoding="utf-8")
    .replace("Bok Choi", LABELS[0])
    .replace("Pot", LABELS[1])
)


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(url: str, process: subprocess.Popen, seconds: float) -> None:
    """Until the URL answers 200."""
    end = time.time() + seconds
    while time.time() < end:
        if process.poll() is not None:
            sys.exit(f"{process.args[0]} ended with {process.returncode}; see its log")
        try:
            if requests.get(url, timeout=2).status_code == 200:
                return
        except requests.RequestException:
            time.sleep(0.5)
    sys.exit(f"{url} did not answer in {seconds} s")


def start_label_studio(port: int, data: Path, log) -> subprocess.Popen:
    """Label Studio with one user, whose legacy token is known, and leave to reach local backends."""
    environment = os.environ | {
        "ML_BLOCK_LOCAL_IP": "false",
        "SSRF_PROTECTION_ENABLED": "false",
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "COLLECT_ANALYTICS": "false",
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        "LABEL_STUDIO_HOST": f"http://127.0.0.1:{port}",
    }
    command = ["label-studio", "start", "--no-browser", "--port", str(port), "--data-dir", str(data)]
    command += ["--username", "user@example.com", "--password", "a long password", "--user-token", TOKEN]
    command[0] = str(Path(sys.executable).with_name("label-studio"))
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def start_groundling(port: int, host: str, log) -> subprocess.Popen:
    """groundling on the demo models."""
    environment = os.environ | {
        "PORT": str(port),
        "LABEL_STUDIO_HOST": host,
        "LABEL_STUDIO_ACCESS_TOKEN": TOKEN,
    }
    return subprocess.Popen([str(ROOT / "target/release/groundling")], env=environment, stdout=log, stderr=log)


class Api:
    """Label Studio's API as its user."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Token {TOKEN}"

    def call(self, method: str, path: str, **arguments):
        """JSON of a call that must succeed."""
        answer = self.session.request(method, self.host + path, timeout=120, **arguments)
        if not answer.ok:
            sys.exit(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer.json()


def check_regions(regions: list, what: str) -> None:
    """A rectangle and a mask for each label, masks that decode to the picture's size."""
    kinds = sorted((region["type"], *region["value"][region["type"]]) for region in regions)
    expected = sorted((kind, label) for kind in ("rectanglelabels", "brushlabels") for label in LABELS)
    assert kinds == expected, f"{what}: {kinds}"
    for region in regions:
        assert (region["original_width"], region["original_height"]) == (WIDTH, HEIGHT), region
        if region["type"] == "brushlabels":
            values = decode_rle(region["value"]["rle"])
            assert len(values) == WIDTH * HEIGHT * 4 and max(values) == 255, what
    print(f"{what}: {[(kind, label) for kind, label in kinds]}")


def check(api: Api, backend: str) -> None:
    """The whole way, from an empty Label Studio."""
    project = api.call("POST", "/api/projects", json={"title": "shapes", "label_config": CONFIG})["id"]
    for _ in range(3):
        with IMAGE.open("rb") as file:
            api.call("POST", f"/api/projects/{project}/import", files={"file": ("shapes.png", file, "image/png")})
    tasks = api.call("GET", f"/api/tasks?project={project}")["tasks"]
    assert len(tasks) == 3 and tasks[0]["data"]["image"].startswith("/data/upload/"), tasks

    connect = {"project": project, "title": "groundling", "url": backend, "is_interactive": True, "auth_method": "NONE"}
    connected = api.call("POST", "/api/ml", json=connect)
    assert connected["state"] == "CO", connected
    print("connected:", connected["model_version"])

    task = tasks[0]["id"]
    prompt = {"value": {"text": ["red circle. blue star."]}, "id": "p1", "from_name": "prompt", "to_name": "image"}
    context = {"result": [prompt | {"type": "textarea", "origin": "manual"}]}
    path = f"/api/ml/{connected['id']}/interactive-annotating"
    start = time.time()
    answer = api.call("POST", path, json={"task": task, "context": context})
    assert "data" in answer, answer
    prediction = answer["data"]
    print(f"typed prompt answered in {time.time() - start:.2f} s")
    check_regions(prediction["result"], "typed prompt")
    problems = LabelInterface(CONFIG).validate_prediction(prediction, return_errors=True)
    assert not problems, problems

    accepted = prediction["result"] + context["result"]
    api.call("POST", f"/api/tasks/{task}/annotations", json={"result": accepted, "was_cancelled": False})
    saved = api.call("GET", f"/api/tasks/{task}")["annotations"][0]["result"]
    check_regions([region for region in saved if region["type"] != "textarea"], "saved annotation")

    selected = {"selectedItems": {"all": True, "excluded": []}, "project": project}
    action = f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}"
    api.call("POST", action, json=selected)
    for task in tasks:
        predictions = api.call("GET", f"/api/predictions?task={task['id']}")
        assert len(predictions) == 1, predictions
        assert predictions[0]["model_version"] == connected["model_version"], predictions[0]["model_version"]
        check_regions(predictions[0]["result"], f"retrieved for task {task['id']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="keep logs and data here")
    parser.add_argument("--keep-running", action="store_true", help="stay up afterwards, to look at it in a browser")
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="groundling-label-studio-"))
    out.mkdir(parents=True, exist_ok=True)
    studio, backend = free_port(), free_port()
    host = f"http://127.0.0.1:{studio}"
    processes = []
    with (out / "label-studio.log").open("w") as studio_log, (out / "groundling.log").open("w") as backend_log:
        try:
            processes.append(start_groundling(backend, host, backend_log))
            processes.append(start_label_studio(studio, out / "data", studio_log))
            wait_for(f"http://127.0.0.1:{backend}/health", processes[0], 30)
            wait_for(f"{host}/health", processes[1], 240)
            check(Api(host), f"http://127.0.0.1:{backend}")
            print("Label Studio and groundling agree; logs in", out)
            if arguments.keep_running:
                print(json.dumps({"label_studio": host, "user": "user@example.com", "password": "a long password"}))
                processes[1].wait()
        finally:
            for process in processes:
                process.terminate()


if __name__ == "__main__":
    main()
