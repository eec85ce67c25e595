"""Starts docker-compose.yml as a user does, and tests Label Studio and groundling in their containers.

    pip install -r tests/label_studio/requirements.txt    (and Debian's chromium, docker.io and docker-compose)
    python tests/docker/check.py [--out FOLDER] [--keep-running]

Needs a Docker engine and the base images of Dockerfile and docker-compose.yml; builds the image if it is missing, which takes
10 to 30 minutes. The project has volumes and ports of its own, and is removed at the end. Prints a line for each step and the
measured sizes and times; the exit code is 1 after the first failed step. Screenshots and logs are written to the folder.
"""

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "label_studio"))

import studio  # noqa: E402
from studio import ensure, free_port, until  # noqa: E402

NAME = "groundling-check"
SHAPES = ROOT / "examples/images/shapes.png"
CONFIG = """<View><Image name="image" value="$image"/><TextArea name="prompt" toName="image"/>
<RectangleLabels name="box" toName="image"><Label value="red circle"/><Label value="blue star"/></RectangleLabels>
<BrushLabels name="mask" toName="image"><Label value="red circle"/><Label value="blue star"/></BrushLabels></View>"""
PROMPT = {"result": [{"type": "textarea", "from_name": "prompt", "to_name": "image", "id": "a",
                      "value": {"text": ["red circle. blue star"]}}]}  # fmt: skip
# one image: credentials of a server that only exists for this check
S3_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "check", "AWS_SECRET_ACCESS_KEY": "check", "AWS_DEFAULT_REGION": "us-east-1"}


def compose_command() -> list[str]:
    """Version 2 of compose is a plugin of Docker, version 1 a program."""
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True)
    return ["docker", "compose"] if plugin.returncode == 0 else ["docker-compose"]


class Stack:
    """The containers of docker-compose.yml."""

    def __init__(self, out: Path):
        self.out = out
        self.files = out / "files"
        self.files.mkdir(parents=True)
        shutil.copy(SHAPES, self.files)
        self.port, self.groundling_port = free_port(), free_port()
        self.environment = os.environ | {
            "COMPOSE_PROJECT_NAME": NAME,
            "LABEL_STUDIO_PORT": str(self.port),
            "GROUNDLING_PORT": str(self.groundling_port),
            "LABEL_STUDIO_FILES": str(self.files),
            "ALLOWED_IMAGE_HOSTS": "s3:5000",
            # the published models cannot be downloaded everywhere
            "DETECTOR": "demo",
            "SEGMENTER": "demo",
        }
        self.url = f"http://127.0.0.1:{self.port}"
        self.compose = [*compose_command(), "--file", str(ROOT / "docker-compose.yml"), "--profile", "demo"]

    def run(self, *arguments: str, check: bool = True, seconds: float = 3600) -> str:
        """Runs compose. Returns its standard output."""
        with (self.out / "compose.log").open("a") as log:
            done = subprocess.run(
                [*self.compose, *arguments], env=self.environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=log,
                text=True, timeout=seconds, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        ensure(done.returncode == 0 or not check, f"compose {' '.join(arguments)}: {done.returncode}; see compose.log")
        return done.stdout

    def container(self, service: str) -> str:
        """The id of a service's container, also of one that has ended."""
        found = docker("ps", "--all", "--quiet", *(
            f"--filter=label=com.docker.compose.{label}" for label in (f"project={NAME}", f"service={service}")
        )).split()  # fmt: skip
        ensure(found, f"the service {service} has no container")
        return found[0]

    def state(self, service: str) -> dict:
        return json.loads(docker("inspect", "--format", "{{json .State}}", self.container(service)))

    def wait_for_end(self, service: str, seconds: float) -> None:
        """Waits until a service has ended, with exit code 0."""
        until(f"the end of {service}", lambda: self.state(service)["Status"] == "exited", seconds, 1)
        code = self.state(service)["ExitCode"]
        ensure(code == 0, f"{service} ended with exit code {code}: {docker('logs', self.container(service))[-1500:]}")

    def stop(self) -> None:
        (self.out / "containers.log").write_text(self.run("logs", "--no-color", check=False))
        docker("rm", "--force", "--volumes", f"{NAME}-s3", check=False)
        self.run("down", "--volumes", "--timeout", "15", check=False)


def docker(*arguments: str, check: bool = True, text: str = "") -> str:
    """Runs docker with a text as its standard input. Returns its output, with that on the standard error."""
    command = ["docker", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, input=text)
    ensure(done.returncode == 0 or not check, f"docker {' '.join(arguments)}: {done.stdout[-1000:]}")
    return done.stdout


def step(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", flush=True)


def check(stack: Stack) -> None:
    if not docker("images", "--quiet", "groundling:latest").strip():
        stack.run("build")
    size = int(docker("image", "inspect", "--format", "{{.Size}}", "groundling:latest"))
    step(f"the image has {size / 1e6:.0f} MB")
    ensure(size < 100e6, "the image is larger than 100 MB")

    begun = time.monotonic()
    stack.run("up", "--detach", "--no-build")
    stack.wait_for_end("connect-demo", 600)
    stack.wait_for_end("connect", 600)
    step(f"two projects are connected {time.monotonic() - begun:.0f} s after `docker compose up`")
    print(docker("logs", stack.container("connect-demo")).rstrip())
    ensure(f"open {stack.url.replace('127.0.0.1', 'localhost')}/projects" in docker("logs", stack.container("connect-demo")),
           "the log does not name the address for people")  # fmt: skip
    for service in ("groundling", "groundling-demo"):
        until(f"{service} is healthy", lambda service=service: stack.state(service)["Health"]["Status"] == "healthy", 60)
        usage = docker("stats", "--no-stream", "--format", "{{.MemUsage}}", stack.container(service)).strip()
        log = docker("logs", stack.container(service))
        step(f"{service} is healthy and uses {usage.split(' / ')[0]}")
        ensure("panicked" not in log, f"{service} has panicked: {log[-1000:]}")

    shown = stack.run("run", "--rm", "-T", "credentials", "credentials", "--show")
    shown = dict(line.split(":", 1) for line in shown.splitlines() if ":" in line)
    user, password, token = (shown[name].strip() for name in ("user", "password", "token"))
    logs = stack.run("logs", "--no-color")
    for secret in (password, token):
        ensure(secret not in logs, "a log shows a secret")
    step(f"`credentials --show` prints the account {user}; no log shows its secrets")

    # a second start changes nothing
    stack.run("up", "--detach", "--no-build")
    stack.wait_for_end("connect-demo", 300)
    again = docker("logs", stack.container("connect-demo"))
    ensure("was connected already" in again, f"the second start connected again: {again[-1000:]}")
    step("a second `docker compose up` keeps the account and the projects")

    # both modules take the account when they are imported
    studio.USER, studio.PASSWORD = user, password
    from api import Api

    api = Api(stack.url)
    images(api)
    page(stack, api)


def images(api) -> None:
    """groundling reads an uploaded image, a local file, and an image in a bucket."""
    project = api.project("images", CONFIG)
    backend = api.post("/api/ml", {"project": project, "title": "groundling", "url": "http://groundling:9090",
                                   "is_interactive": True, "auth_method": "NONE", "extra_params": ""})  # fmt: skip
    api.upload(project, SHAPES)
    local = {"project": project, "path": "/label-studio/files/pictures", "use_blob_urls": True, "regex_filter": ".*png"}
    storage = api.post("/api/storages/localfiles", local | {"title": "folder"})
    api.post(f"/api/storages/localfiles/{storage['id']}/sync", {})

    docker("build", "--quiet", "--tag", f"{NAME}-s3", str(ROOT / "tests/docker/s3"))
    docker("run", "--detach", "--name", f"{NAME}-s3", "--network", f"{NAME}_default", "--network-alias", "s3", f"{NAME}-s3")
    picture = base64.b64encode(SHAPES.read_bytes()).decode()
    script = f"""
import base64, boto3, time
s3 = boto3.client("s3", endpoint_url="http://127.0.0.1:5000")
for _ in range(60):
    try:
        s3.create_bucket(Bucket="pictures")
        break
    except Exception:
        time.sleep(0.5)
s3.put_object(Bucket="pictures", Key="a folder/shapes.png", Body=base64.b64decode("{picture}"))
"""
    variables = [f"--env={name}={value}" for name, value in S3_ENVIRONMENT.items()]
    docker("exec", "--interactive", *variables, f"{NAME}-s3", "/opt/s3/bin/python", "-", text=script)
    bucket = {"project": project, "bucket": "pictures", "s3_endpoint": "http://s3:5000", "use_blob_urls": True,
              "regex_filter": ".*png", "title": "bucket", "aws_access_key_id": "check", "region_name": "us-east-1",
              "aws_secret_access_key": "check", "presign": True, "recursive_scan": True}  # fmt: skip
    storage = api.post("/api/storages/s3", bucket)
    synced = api.post(f"/api/storages/s3/{storage['id']}/sync", {})
    ensure(synced["status"] == "completed", f"the bucket was not read: {synced}")

    tasks = {task["id"]: task["data"]["image"] for task in api.get(f"/api/tasks?project={project}&page_size=50")["tasks"]}
    kinds = sorted(image.split("?")[0].rsplit("/", 1)[0] for image in tasks.values())
    ensure(len(tasks) == 3, f"tasks: {tasks}")
    for task, image in tasks.items():
        regions = api.suggest(backend["id"], task, PROMPT)
        found = sorted((region["type"], *region["value"].get(region["type"], [])) for region in regions if "score" in region)
        expected = sorted((kind, label) for kind in ("rectanglelabels", "brushlabels") for label in ("red circle", "blue star"))
        ensure(found == expected, f"{image}: {found}")
    step(f"an uploaded image, a local file and an image in a bucket are read: {', '.join(kinds)}")


def page(stack: Stack, api) -> None:
    """In a browser: a prompt typed in the demo project makes regions, which are submitted."""
    from browser import Browser

    [project] = [p["id"] for p in api.get("/api/projects/?page_size=100")["results"] if p["title"] == "groundling demo"]
    task = api.tasks(project)[0]
    browser = Browser(stack.url, stack.out / "screenshots")
    try:
        browser.open_task(project, task)
        browser.enable_auto_annotation()
        browser.screenshot("docker-1-open")
        answer = browser.type_prompt("star. rectangle. circle")
        browser.screenshot("docker-2-suggestions")
        browser.accept_all()
        browser.save("submit")
        browser.screenshot("docker-3-submitted")
        [annotation] = api.annotations(task)
        saved = [region for region in annotation["result"] if region["type"] in ("rectanglelabels", "brushlabels")]
        # the task's prediction, which was there when it was opened, is saved too
        ids = {region["id"] for region in saved}
        found = {region["id"] for region in answer["result"]}
        ensure(found and found <= ids, f"suggested {found}, saved {ids}")
    finally:
        browser.close()
    step(f"a prompt typed in the browser made {len(found)} regions, which were accepted and saved")


STARTED = time.monotonic()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the folder for screenshots and logs; must be empty or new")
    parser.add_argument("--keep-running", action="store_true", help="do not remove the containers at the end")
    arguments = parser.parse_args()
    out = (arguments.out or Path(tempfile.mkdtemp(prefix="groundling-docker-"))).resolve()
    out.mkdir(parents=True, exist_ok=True)
    stack = Stack(out)
    try:
        check(stack)
    except studio.CheckFailed as problem:
        step(f"FAILED: {problem}")
        return 1
    finally:
        if not arguments.keep_running:
            stack.stop()
        print(f"logs and screenshots: {out}")
    print("1 passed, 0 failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
