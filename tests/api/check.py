"""groundling's answers against its own OpenAPI document, with bodies that schemathesis makes of it.

    cargo build --release
    tests/api/run [--examples N] [--seed N] [--out FOLDER]

First every body recorded of Label Studio is held against the document, which must not refuse what Label Studio sends.
Then schemathesis asks every route. Exits with 1 if an answer is not as the document says, or a defect shows in the log.
The document, the reports and the log stay in the folder.
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
# those in schemathesis.toml
USER, PASSWORD = "user", "pa ss:wörd"
START_SECONDS = 120
# nobody listens there
NOWHERE = "http://127.0.0.1:1"


class CheckFailed(Exception):
    """Something is not as it should be; the message says what."""


def start(out: Path) -> subprocess.Popen:
    """A groundling that can fetch nothing: every way out ends at a closed port of this machine."""
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


def address(server: subprocess.Popen, log: Path) -> str:
    """Where it listens, from its log, once its models are loaded."""
    end = time.monotonic() + START_SECONDS
    url = None
    while time.monotonic() < end:
        if server.poll() is not None:
            raise CheckFailed(f"groundling ended with {server.returncode}; see {log}")
        listening = re.search(r'"message":"listening","address":"([^"]+)"', log.read_text(errors="replace"))
        url = listening and f"http://{listening[1]}"
        try:
            if url and urllib.request.urlopen(f"{url}/ready", timeout=2).status == 200:
                return url
        except OSError:
            pass
        time.sleep(0.2)
    raise CheckFailed(f"groundling was not ready in {START_SECONDS} s; see {log}")


def document(url: str) -> dict:
    """Its OpenAPI document."""
    passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
    passwords.add_password(None, url, USER, PASSWORD, is_authenticated=True)
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords))
    with opener.open(f"{url}/api-docs", timeout=10) as answer:
        return json.load(answer)


def recorded_bodies(docs: dict) -> int:
    """Holds every recorded body against the schema of its route; how many there were."""
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
            raise CheckFailed(f"{path.name} does not fit {request['path']}: {errors[0]}")
        count += 1
    if count < 12:
        raise CheckFailed(f"only {count} recorded bodies in {PAYLOADS}")
    return count


def ask(url: str, out: Path, arguments: argparse.Namespace) -> int:
    """Runs schemathesis; its exit code."""
    command = [Path(sys.executable).with_name("schemathesis"), "--config-file", HERE / "schemathesis.toml", "run"]
    command += [out / "openapi.json", "--url", url]
    command += ["--seed", arguments.seed, "--max-examples", arguments.examples]
    command += ["--report", "ndjson,junit", "--report-dir", out / "reports"]
    command += ["--report-ndjson-path", out / "events.ndjson"]
    hooks = {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1", "NO_PROXY": "*"}
    return subprocess.call([str(part) for part in command], cwd=out, env=os.environ | hooks)


def answers(events: Path) -> None:
    """Counts the answers by route and status; `/predict` must have found something in some images."""
    counts: dict = collections.defaultdict(collections.Counter)
    with_regions = 0
    for line in events.read_text(encoding="utf-8").splitlines():
        recorder = json.loads(line).get("ScenarioFinished", {}).get("recorder") or {}
        for interaction in recorder.get("interactions", {}).values():
            answer = interaction.get("response") or {}
            status = answer.get("status_code", "none")
            counts[recorder["label"]][status] += 1
            content = base64.b64decode((answer.get("content") or {}).get("$base64", ""))
            with_regions += status == 200 and b'"original_width"' in content
    for route, statuses in sorted(counts.items()):
        print(f"{route:14}", *(f"{status}: {count}" for status, count in sorted(statuses.items(), key=str)), sep="  ")
    total = sum(count for statuses in counts.values() for count in statuses.values())
    print(f"{total} answers, {with_regions} of them with regions")
    if not with_regions:
        raise CheckFailed("no answer of /predict has regions: the bodies no longer get as far as the models")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=250, help="generated bodies per route, besides the edge cases")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same bodies")
    parser.add_argument("--out", type=Path, default=ROOT / "target/api/out", help="reports and logs go here")
    arguments = parser.parse_args()
    if not GROUNDLING.is_file():
        parser.error(f"no binary at {GROUNDLING}: cargo build --release, or set GROUNDLING_BIN")
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    begun = time.monotonic()
    server = start(out)
    try:
        url = address(server, out / "groundling.log")
        docs = document(url)
        (out / "openapi.json").write_text(json.dumps(docs, indent=1))
        print(f"{recorded_bodies(docs)} recorded bodies of Label Studio fit the document", flush=True)
        print(f"seed {arguments.seed}, {arguments.examples} examples per route", flush=True)
        code = ask(url, out, arguments)
        if server.poll() is not None:
            raise CheckFailed(f"groundling ended with {server.returncode}; see {out / 'groundling.log'}")
        panics = (out / "groundling.log").read_text(errors="replace").count("panicked")
        if panics:
            raise CheckFailed(f"{panics} panics in {out / 'groundling.log'}")
        answers(out / "events.ndjson")
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
