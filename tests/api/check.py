"""Compares groundling's responses with its own OpenAPI document, for bodies that schemathesis generates from it.

    cargo build --release
    tests/api/run [--examples N] [--seed N] [--out FOLDER]

First, every recorded body of Label Studio must be valid by the document. Then schemathesis sends requests to every route. The
exit code is 1 if a response does not fit the document, or if the log has a panic. The document, the reports and the log are
written to the folder.
"""

import argparse
import base64
import collections
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import jsonschema_rs

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GROUNDLING = Path(os.environ.get("GROUNDLING_BIN", ROOT / "target/release/groundling")).resolve()
PAYLOADS = ROOT / "tests/integration/payloads"
# the same as in schemathesis.toml
USER, PASSWORD = "user", "pa ss:wörd"
START_SECONDS = 120
# a closed port
NOWHERE = "http://127.0.0.1:1"


class CheckFailed(Exception):
    """A failed check; the message says what is wrong."""


def start(out: Path) -> subprocess.Popen:
    """Starts a groundling that can fetch nothing: Label Studio and the proxies are a closed port of this machine."""
    settings = {
        "PORT": "0",
        "BIND_ADDRESS": "127.0.0.1",
        "BASIC_AUTH_USER": USER,
        "BASIC_AUTH_PASS": PASSWORD,
        "DETECTOR": "demo",
        "SEGMENTER": "demo",
        "MODEL_DIR": str(out / "models"),
        "LABEL_STUDIO_HOST": NOWHERE,
        "IMAGE_TIMEOUT_S": "2",
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "info",
    }
    proxies = {name: NOWHERE for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")}
    with (out / "groundling.log").open("w") as log:
        return subprocess.Popen(
            [str(GROUNDLING)],
            env=os.environ | settings | proxies | {"NO_PROXY": "", "no_proxy": ""},
            cwd=out,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def wait_until_ready(server: subprocess.Popen, log: Path) -> str:
    """Waits until the models are loaded. Returns the URL of the server, which is in its log."""
    end = time.monotonic() + START_SECONDS
    url = None
    while time.monotonic() < end:
        if server.poll() is not None:
            raise CheckFailed(f"groundling ended with exit code {server.returncode}; see {log}")
        listening = re.search(r'"message":"listening","address":"([^"]+)"', log.read_text(errors="replace"))
        url = listening and f"http://{listening[1]}"
        try:
            if url and urllib.request.urlopen(f"{url}/ready", timeout=2).status == 200:
                return url
        except OSError:
            pass
        time.sleep(0.2)
    raise CheckFailed(f"groundling was not ready in {START_SECONDS} s; see {log}")


def openapi_document(url: str) -> dict:
    """The OpenAPI document of the server."""
    passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
    passwords.add_password(None, url, USER, PASSWORD, is_authenticated=True)
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords))
    with opener.open(f"{url}/api-docs", timeout=10) as response:
        return json.load(response)


def check_recorded_bodies(docs: dict) -> int:
    """Validates every recorded body with the schema of its route. Returns the number of bodies."""
    count = 0
    for path in sorted(PAYLOADS.glob("*.json")):
        request = json.loads(path.read_text(encoding="utf-8")).get("request", {})
        if request.get("body") is None:
            continue
        operation = docs["paths"][request["path"]][request["method"].lower()]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        schema = schema | {"components": docs["components"]}
        errors = list(jsonschema_rs.Draft202012Validator(schema).iter_errors(request["body"]))
        if errors:
            raise CheckFailed(f"{path.name} does not fit the schema of {request['path']}: {errors[0]}")
        count += 1
    if count < 12:
        raise CheckFailed(f"there are only {count} recorded bodies in {PAYLOADS}")
    return count


def run_schemathesis(url: str, out: Path, arguments: argparse.Namespace) -> int:
    """Runs schemathesis. Returns its exit code."""
    command = [Path(sys.executable).with_name("schemathesis"), "--config-file", HERE / "schemathesis.toml", "run"]
    command += [out / "openapi.json", "--url", url]
    command += ["--seed", arguments.seed, "--max-examples", arguments.examples]
    command += ["--report", "ndjson,junit", "--report-dir", out / "reports"]
    command += ["--report-ndjson-path", out / "events.ndjson"]
    hooks = {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1", "NO_PROXY": "*"}
    return subprocess.call([str(part) for part in command], cwd=out, env=os.environ | hooks)


def count_responses(events: Path) -> None:
    """Prints the number of responses by route and status; some responses of `/predict` must have regions."""
    counts: dict = collections.defaultdict(collections.Counter)
    with_regions = 0
    for line in events.read_text(encoding="utf-8").splitlines():
        recorder = json.loads(line).get("ScenarioFinished", {}).get("recorder") or {}
        for interaction in recorder.get("interactions", {}).values():
            response = interaction.get("response") or {}
            status = response.get("status_code", "none")
            counts[recorder["label"]][status] += 1
            content = base64.b64decode((response.get("content") or {}).get("$base64", ""))
            with_regions += status == 200 and b'"original_width"' in content
    for route, statuses in sorted(counts.items()):
        print(f"{route:14}", *(f"{status}: {count}" for status, count in sorted(statuses.items(), key=str)), sep="  ")
    total = sum(count for statuses in counts.values() for count in statuses.values())
    print(f"{total} responses, {with_regions} of them with regions")
    if not with_regions:
        raise CheckFailed("no response of /predict has regions: the generated bodies no longer reach the models")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=250, help="generated bodies per route, in addition to the edge cases")
    parser.add_argument("--seed", type=int, default=1, help="equal seeds generate equal bodies")
    parser.add_argument("--out", type=Path, default=ROOT / "target/api/out", help="the folder for reports and logs")
    arguments = parser.parse_args()
    if not GROUNDLING.is_file():
        parser.error(f"there is no binary {GROUNDLING}: run cargo build --release, or set GROUNDLING_BIN")
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated by SIGTERM"))
    begun = time.monotonic()
    server = start(out)
    try:
        url = wait_until_ready(server, out / "groundling.log")
        docs = openapi_document(url)
        (out / "openapi.json").write_text(json.dumps(docs, indent=1))
        print(f"{check_recorded_bodies(docs)} recorded bodies of Label Studio are valid by the document", flush=True)
        print(f"seed {arguments.seed}, {arguments.examples} examples per route", flush=True)
        code = run_schemathesis(url, out, arguments)
        if server.poll() is not None:
            raise CheckFailed(f"groundling ended with exit code {server.returncode}; see {out / 'groundling.log'}")
        panics = (out / "groundling.log").read_text(errors="replace").count("panicked")
        if panics:
            raise CheckFailed(f"{panics} panics in {out / 'groundling.log'}")
        count_responses(out / "events.ndjson")
        print(f"{time.monotonic() - begun:.0f} s; reports and logs: {out}")
        return 1 if code else 0
    except CheckFailed as problem:
        print(f"FAILED {problem}")
        return 1
    finally:
        if server.poll() is None:
            server.terminate()
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()


if __name__ == "__main__":
    sys.exit(main())
