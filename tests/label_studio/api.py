"""Label Studio's API, called as a user, and the labeling configs of the scenarios."""

import io
import json
import time
import zipfile
from pathlib import Path
from typing import Any, List, Optional

import requests
from studio import PASSWORD, ROOT, USER, CheckFailed, Process, ensure

SHAPES = ROOT / "examples/images/shapes.png"
LABELS = ("Red Circle", "Blue Star")
PROMPT = "red circle. blue star."
CONFIG = (
    (ROOT / "examples/label-studio/labeling_config.xml")
    .read_text(encoding="utf-8")
    .replace("Bok Choi", LABELS[0])
    .replace("Pot", LABELS[1])
)
KEYPOINTS = """  <Header>Points</Header>
  <KeyPointLabels name="point" toName="image" smart="true">
    <Label value="Red Circle" background="orange"/><Label value="Blue Star" background="purple"/>
  </KeyPointLabels>
</View>"""
LABEL_TAGS = '<Label value="Red Circle" background="red"/><Label value="Blue Star" background="blue"/>'


def shapes_config(*controls: str) -> str:
    """A labeling config with a prompt and these control tags, in which {labels} stands for the labels."""
    lines = "".join(control.format(labels=LABEL_TAGS) for control in controls)
    return f"""<View>
  <Image name="image" value="$image" smoothing="false"/>
  <Style>.lsf-main-content.lsf-requesting .prompt::before {{ content: "loading"; }}</Style>
  <View className="prompt"><TextArea name="prompt" toName="image" editable="true" rows="2" maxSubmissions="1"/></View>
  {lines}
</View>"""


SMART_CONFIG = CONFIG.rstrip().removesuffix("</View>") + KEYPOINTS


def prompt_context(text: str) -> dict:
    """The context that the page sends after a prompt was typed."""
    prompt = {"value": {"text": [text]}, "id": "p1", "from_name": "prompt", "to_name": "image"}
    return {"result": [prompt | {"type": "textarea", "origin": "manual"}]}


class Api:
    """Calls with access tokens of a personal access token, which also work while legacy tokens are disabled.

    Without such a token, it enables both kinds of tokens and creates one. `authority` is the file of a certificate authority.
    """

    def __init__(self, host: str, pat: Optional[str] = None, authority: Optional[Path] = None) -> None:
        self.host = host
        self.session = requests.Session()
        # a certificate authority in the environment would replace this one
        self.session.trust_env = False
        self.session.verify = str(authority) if authority else True
        self.renew_at = float("inf")
        if pat is None:
            # some releases accept no legacy token at first
            self.log_in()
            self.allow_tokens(legacy=True)
            pat = self.post("/api/token/", {})["token"]
            self.session.cookies.clear()
        self.pat = pat
        self.renew()

    def log_in(self) -> None:
        """Logs in as the page does, so that the next calls need no token."""
        page = f"{self.host}/user/login/"
        self.session.get(page, timeout=30)
        form = {"email": USER, "password": PASSWORD, "csrfmiddlewaretoken": self.session.cookies["csrftoken"]}
        answer = self.session.post(page, data=form, headers={"Referer": page}, timeout=30)
        ensure(answer.ok and "sessionid" in self.session.cookies, f"POST /user/login/: {answer.status_code}")

    def renew(self) -> None:
        """Gets a new access token, which is valid for 300 s."""
        answer = self.session.post(f"{self.host}/api/token/refresh/", json={"refresh": self.pat}, timeout=30)
        ensure(answer.ok, f"POST /api/token/refresh/: {answer.status_code} {answer.text[:300]}")
        self.session.headers["Authorization"] = f"Bearer {answer.json()['access']}"
        self.renew_at = time.monotonic() + 200

    def send(self, method: str, path: str, **arguments: Any) -> requests.Response:
        """The response of a call, whatever its status."""
        if time.monotonic() > self.renew_at:
            self.renew()
        return self.session.request(method, self.host + path, timeout=120, **arguments)

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """The JSON of a call that must succeed."""
        answer = self.send(method, path, **arguments)
        if not answer.ok:
            raise CheckFailed(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer.json() if answer.content else None

    def get(self, path: str) -> Any:
        """The JSON of a GET request."""
        return self.call("GET", path)

    def post(self, path: str, body: Any) -> Any:
        """The JSON of a POST request with a JSON body."""
        return self.call("POST", path, json=body)

    def allow_tokens(self, legacy: bool) -> None:
        """Enables personal access tokens, and enables or disables legacy tokens, for the organisation."""
        self.post("/api/jwt/settings", {"api_tokens_enabled": True, "legacy_api_tokens_enabled": legacy})

    def project(self, title: str, config: str = CONFIG, preannotate: Optional[bool] = False) -> int:
        """Creates a project. `preannotate` is `show_collab_predictions`; None keeps Label Studio's default. Returns its id."""
        body = {"title": title, "label_config": config}
        if preannotate is not None:
            body["show_collab_predictions"] = preannotate
        return self.post("/api/projects", body)["id"]

    def upload(self, project: int, *pictures: Path) -> List[int]:
        """Uploads pictures. Returns the ids of the project's tasks, oldest first."""
        for picture in pictures:
            kind = "image/jpeg" if picture.suffix == ".jpg" else "image/png"
            files = {"file": (picture.name, picture.read_bytes(), kind)}
            self.call("POST", f"/api/projects/{project}/import", files=files)
        return self.tasks(project)

    def import_urls(self, project: int, urls: List[str]) -> None:
        """Imports one task for each image URL."""
        self.post(f"/api/projects/{project}/import", [{"data": {"image": url}} for url in urls])

    def tasks(self, project: int) -> List[int]:
        """The ids of the project's tasks, oldest first."""
        return sorted(task["id"] for task in self.get(f"/api/tasks?project={project}&page_size=200")["tasks"])

    def connect(self, project: int, backend: Process, **more: Any) -> dict:
        """Connects a backend, which must be healthy. Returns Label Studio's record of it."""
        connected = self.post("/api/ml", self.connection(project, backend) | more)
        ensure(connected["state"] == "CO", f"{backend.name} is not connected: {connected}")
        ensure(connected["model_version"], f"{backend.name} returned no model version: {connected}")
        return connected

    @staticmethod
    def connection(project: int, backend: Process) -> dict:
        """The body that the form in Settings > Model sends."""
        body = {"project": project, "title": backend.name, "url": backend.url, "is_interactive": True}
        return body | {"auth_method": "NONE", "extra_params": ""}

    def test_request(self, ml: int) -> list:
        """The regions of the test request in Settings > Model."""
        answer = self.call("POST", f"/api/ml/{ml}/predict/test?random=true")
        ensure(answer.get("status") == 200, f"test request: {json.dumps(answer)[:500]}")
        predictions = answer["response"]
        ensure(isinstance(predictions, list) and len(predictions) == 1, f"test request: {str(predictions)[:300]}")
        return predictions[0]["result"]

    def interactive(self, ml: int, task: int, context: Any) -> dict:
        """The response to an interactive request of the page; it has "data" or "errors"."""
        return self.post(f"/api/ml/{ml}/interactive-annotating", {"task": task, "context": context})

    def suggest(self, ml: int, task: int, context: Any) -> list:
        """The regions of an interactive request that must succeed."""
        answer = self.interactive(ml, task, context)
        ensure("data" in answer, f"interactive request for task {task}: {answer}")
        return answer["data"]["result"]

    def export_formats(self, project: int) -> List[str]:
        """The names of the formats to which Label Studio exports the project."""
        formats = self.get(f"/api/projects/{project}/export/formats")
        return [entry["name"] for entry in formats if not entry.get("disabled")]

    def export_coco(self, project: int) -> dict:
        """The project's annotations as Label Studio exports them to COCO."""
        answer = self.send("GET", f"/api/projects/{project}/export?exportType=COCO")
        ensure(answer.ok, f"export to COCO: {answer.status_code} {answer.text[:300]}")
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            return json.loads(archive.read("result.json"))

    def retrieve_predictions(self, project: int) -> None:
        """Data manager > Retrieve predictions, for all tasks."""
        body = {"selectedItems": {"all": True, "excluded": []}, "project": project}
        self.post(f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}", body)

    def predictions(self, task: int) -> list:
        """The stored predictions of a task."""
        return self.get(f"/api/predictions?task={task}")

    def annotations(self, task: int) -> list:
        """The annotations of a task."""
        return self.get(f"/api/tasks/{task}")["annotations"]
