"""Tests groundling with the real Label Studio and its page in headless Chromium.

    pip install -r tests/label_studio/requirements.txt    (and Debian's chromium and nginx-light)
    cargo build --release
    python tests/label_studio/check.py [--out FOLDER] [--only NAME[,NAME]]

Starts Label Studio and groundling on free ports of 127.0.0.1 with new data, runs the scenarios, and prints a line for each. The
exit code is 1 after the first failed scenario. A scenario that this Label Studio or this machine cannot run is skipped, and its
line says why. Screenshots and logs are written to the folder. GROUNDLING_BIN selects another binary than
target/release/groundling. requirements-old.txt has an older Label Studio, for which the same command works.
"""

import argparse
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import api_scenarios
import editor_scenarios
import page_scenarios
import proxy_scenarios
from api import Api
from studio import GROUNDLING, PASSWORD, STUDIO_SECONDS, USER, Skipped, World, ensure

SCENARIOS = {
    "connect": page_scenarios.connect,
    "browser": page_scenarios.browser,
    "masks": page_scenarios.masks,
    "status": editor_scenarios.status,
    "pages": editor_scenarios.pages,
    "roi": editor_scenarios.roi,
    "shapes": editor_scenarios.shapes,
    "task-labels": editor_scenarios.task_labels,
    "protocol": editor_scenarios.protocol,
    "family": editor_scenarios.family,
    "exif": page_scenarios.exif,
    "smart": page_scenarios.smart,
    "batch": api_scenarios.batch,
    "tokens": api_scenarios.tokens,
    "memory": page_scenarios.memory,
    "annotate": api_scenarios.annotate,
    "doctor": api_scenarios.doctor,
    "connect-command": api_scenarios.connect_command,
    "evaluate": api_scenarios.evaluate,
    "basic-auth": api_scenarios.basic_auth,
    "proxy": proxy_scenarios.proxy,
}
PAGE = ("browser", "masks", "status", "pages", "roi", "shapes", "task-labels", "family", "exif", "smart", "memory")
JWT = re.compile(r"eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}")


def start(world: World) -> None:
    """Starts Label Studio, creates tokens, and starts a groundling with each kind of token."""
    world.logs.mkdir(parents=True, exist_ok=True)
    world.start_label_studio()
    world.studio.wait_for_health(STUDIO_SECONDS)
    world.api = Api(world.studio.url)
    world.secrets["personal access token"] = world.api.pat
    world.secrets["Label Studio password"] = PASSWORD
    world.legacy = world.start_groundling("legacy", world.secrets["legacy token"])
    world.pat = world.start_groundling("pat", world.api.pat)


def no_secrets(world: World) -> None:
    """Checks that no log and no output of groundling shows a token or a password."""
    logs = sorted(world.logs.glob("groundling*.log"))
    ensure(logs, f"no logs of groundling in {world.logs}")
    for log in logs:
        text = log.read_text(encoding="utf-8", errors="replace")
        for what, secret in world.secrets.items():
            parts = secret.split(".") if secret.count(".") == 2 else [secret]
            # the first part of a JSON web token is the same for all tokens; the last part is its signature
            ensure(parts[-1] not in text, f"{log} shows the {what}")
        ensure(not JWT.search(text), f"{log} shows a JSON web token")


def run(name: str, scenario, world: World) -> str:
    """Runs a scenario and prints a line. Returns whether it is "ok", "skip" or "FAILED"."""
    begun = time.monotonic()
    try:
        scenario(world)
        outcome, problem = "ok", None
    except Skipped as reason:
        outcome, problem = "skip", str(reason)
    except Exception as error:  # a scenario may raise any exception; only its message is printed
        outcome, problem = "FAILED", f"{type(error).__name__}: {error}"
        (world.logs / f"failed-{name}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        if world.browser is not None and name in PAGE:
            world.browser.screenshot(f"failed-{name}")
    print(f"{outcome:6} {name:15} {time.monotonic() - begun:6.1f} s", flush=True)
    if problem:
        print(f"       {problem}", flush=True)
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the folder for screenshots, logs and data; must be empty or new")
    parser.add_argument("--only", help=f"scenarios to run, some of {','.join(SCENARIOS)}")
    parser.add_argument("--keep-going", action="store_true", help="continue after a failed scenario")
    parser.add_argument(
        "--keep-running", action="store_true", help="keep the servers running afterwards, to use them in a browser"
    )
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(SCENARIOS)
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        parser.error(f"unknown scenarios {', '.join(unknown)}; the scenarios are {', '.join(SCENARIOS)}")
    if not GROUNDLING.is_file() or not shutil.which(str(GROUNDLING)):
        parser.error(f"there is no binary {GROUNDLING}: run cargo build --release, or set GROUNDLING_BIN")
    out = (arguments.out or Path(tempfile.mkdtemp(prefix="groundling-label-studio-"))).resolve()
    if (out / "data").exists():
        parser.error(f"{out} has the data of another run: choose a new folder")
    out.mkdir(parents=True, exist_ok=True)

    world, passed, failed, skipped = World(out), 0, 0, 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated by SIGTERM"))
    try:
        steps = [("start", start), *((name, SCENARIOS[name]) for name in names), ("no-secrets", no_secrets)]
        for name, scenario in steps:
            outcome = run(name, scenario, world)
            passed += outcome == "ok" and name != "start"
            skipped += outcome == "skip"
            failed += outcome == "FAILED"
            if outcome == "FAILED" and (name == "start" or not arguments.keep_going):
                break
        print(f"logs and screenshots: {out}")
        print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
        if arguments.keep_running and world.studio is not None:
            print(f"{world.studio.url}, {USER}, {PASSWORD!r}; groundling at {world.legacy.url}; Ctrl+C ends it")
            world.studio.running.wait()
    finally:
        world.stop()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
