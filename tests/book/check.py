"""Runs every command and every config in README.md and in the pages of the book, and checks their links.

    cargo build --release
    python3 tests/book/check.py [--groundling PROGRAM] [--only docs/quick-start.md[,README.md]]
    pip install -r tests/label_studio/requirements.txt
    python tests/book/check.py --label-studio

A line is printed for each page, and the exit code is 1 if something failed. Without --label-studio it needs no third-party package.

| block | what is done with it |
|---|---|
| `sh` | It runs in a folder that the blocks of the page share, in their order. The folder is empty but for examples/ and links to the other files of the repository. `groundling` is on the PATH, and stands in for `cargo run --release --`; the models are the demo models. |
| `sh` with the first line `# with Label Studio` | It runs only with --label-studio: LABEL_STUDIO_HOST and LABEL_STUDIO_ACCESS_TOKEN are set, and project 1 has pictures of shapes, one of them annotated, the labels Circle and Star, and a connected groundling. |
| `xml` with the root `View` | It is a labeling config, which groundling's `/setup` must accept without a warning, and Label Studio's API with --label-studio. Other `xml` must be well-formed. |
| `json` | It must be JSON. If the line before it is `<!-- extra params -->`, `/setup` must accept it without a warning. |
| any, after the line `<!-- not run: REASON -->` | It is skipped, and counted. |

A line that starts with `groundling serve`, or ends with ` serve` or ` serve &`, is started in the background. The next line of the block
runs when the server answers, and the server ends with the block.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Optional

ROOT = Path(__file__).resolve().parents[2]
# both folders have a module named studio; it is the first one's
sys.path += [str(ROOT / "tests/label_studio"), str(ROOT / "tests/simulation")]

from links import check_links, check_summary  # noqa: E402
from pages import Block, Page, pages  # noqa: E402
from server import Server, environment  # noqa: E402

NOT_RUN = re.compile(r"not run:\s*(.*)", re.DOTALL)
EXTRA_PARAMS = "extra params"
WITH_STUDIO = "# with Label Studio"
NEEDS_STUDIO = "needs Label Studio (--label-studio)"
# other names of `sh`, which would not be run
OTHER_SHELLS = ("bash", "shell", "console", "shell-session", "zsh")
SERVE = re.compile(r"^groundling serve\b|\sserve$")
PORT = re.compile(r"(?:--port[ =]|\bPORT=)(\d+)")
USUAL_PORT = 9090
# files that commands would change, or that are large
NOT_LINKED = {"models", "target", ".git"}
COPIED = {"examples"}


class Report:
    """What was done, and what failed."""

    def __init__(self) -> None:
        self.done: Counter = Counter()
        self.skipped: Counter = Counter()
        self.failures = 0

    def fail(self, where: str, what: str, output: str = "") -> None:
        """Prints a failure, with the output of the command."""
        self.failures += 1
        print(f"FAILED {where}: {what}")
        for line in output.rstrip().splitlines()[-40:]:
            print(f"    {line}")
        sys.stdout.flush()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def script(block: Block, port: int) -> str:
    """The block as a script for bash, which starts servers in the background and waits for them.

    Where the page has the usual port, the script has `port`, because the machine may have a server on the usual one.
    """
    text = block.text.replace("cargo run --release --quiet --", "groundling").replace("cargo run --release --", "groundling")
    # a command that goes on in the next line is one line here
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    lines = [re.sub(rf"\b{USUAL_PORT}\b", str(port), part) for line in lines for part in commands(line)]
    return "\n".join(lines) + "\n"


def commands(line: str) -> list[str]:
    """The commands of a line; a server is started in the background."""
    command = re.sub(r"\s+#.*$", "", line).strip().removesuffix("&").rstrip()
    if not SERVE.search(command):
        return [line]
    port = PORT.search(command)
    number = port[1] if port else f'"${{PORT:-{USUAL_PORT}}}"'
    return [f"{command} >>serve.log 2>&1 &", f"book_wait_for_server $! {number}"]


# a server that could not listen ends at once, and another one may answer in its place
PRELUDE = """book_wait_for_server() {
  for _ in {1..300}; do
    sleep 0.2
    kill -0 "$1" 2>/dev/null || break
    if PORT=$2 groundling health >/dev/null 2>&1; then return 0; fi
  done
  echo "groundling serve does not answer on port $2; its output:" >&2
  cat serve.log >&2
  return 1
}
"""


class Folder:
    """The folder that the blocks of a page share."""

    def __init__(self, program: Path) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="groundling-book-"))
        self.work, self.bin = self.path / "work", self.path / "bin"
        self.port = free_port()
        self.work.mkdir()
        self.bin.mkdir()
        (self.bin / "groundling").symlink_to(program)
        for entry in ROOT.iterdir():
            if entry.name in COPIED:
                shutil.copytree(entry, self.work / entry.name)
            elif entry.name not in NOT_LINKED:
                (self.work / entry.name).symlink_to(entry)

    def run(self, block: Block, settings: dict, seconds: float) -> tuple[Optional[int], str]:
        """Runs a block. Returns its exit code, None after the time limit, and its output."""
        # outside of the folder, so that it stays as a reader's
        file, log = (self.path / f"{block.line}.{ending}" for ending in ("sh", "log"))
        file.write_text(PRELUDE + script(block, self.port), encoding="utf-8")
        home = {"HF_HOME": str(self.path / "huggingface"), "HOME": str(self.path), "XDG_CACHE_HOME": str(self.path / "cache")}
        variables = environment() | home | {"PATH": f"{self.bin}:{os.environ['PATH']}"} | settings
        for name in ("BIND_ADDRESS", "DEVICE", "LOG_LEVEL", "LOG_FORMAT"):
            variables.pop(name, None)
        variables |= {"PORT": str(self.port), "GROUNDLING_URL": f"http://localhost:{self.port}"}
        with log.open("wb") as sink:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", str(file)],
                cwd=self.work,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                end_group(process)
        return code, log.read_text(encoding="utf-8", errors="replace")

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


def end_group(leader: subprocess.Popen) -> None:
    """Ends a process and those that it has started, such as servers."""
    for sign, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 2)):
        try:
            os.killpg(leader.pid, sign)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                # an ended leader that nobody has asked for would count as running
                leader.poll()
                os.killpg(leader.pid, 0)
                time.sleep(0.05)
        except ProcessLookupError:
            return


class Setup:
    """A groundling that is asked about labeling configs and extra params. Its log says what is wrong with them."""

    def __init__(self, program: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="groundling-book-setup-"))
        self.log = self.folder / "server.log"
        self.server = Server(program, self.folder / "models", self.log)
        # the place of each request, by its project
        self.places: dict[str, str] = {}

    def send(self, where: str, config: Optional[str] = None, extra_params: Optional[dict] = None) -> None:
        """Sends a `/setup` request about a place in a page."""
        project = f"{len(self.places) + 1}.1"
        self.places[project] = where
        body = {"project": project, "schema": config or "", "hostname": "", "access_token": ""}
        if config is None:
            body["schema"] = '<View><Image name="image" value="$image"/><Rectangle name="box" toName="image"/></View>'
        status, answer = self.server.send("POST", "/setup", body | {"extra_params": extra_params or ""})
        if status != 200:
            raise SystemExit(f"{where}: /setup answered {status}: {answer}")

    def finish(self, report: Report) -> None:
        """Ends the server, and reports the warnings of its log."""
        self.server.stop()
        for line in self.log.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            project = entry.get("span", {}).get("project")
            if project in self.places and entry["level"] in ("WARN", "ERROR"):
                report.fail(self.places[project], entry["fields"]["message"])
        shutil.rmtree(self.folder, ignore_errors=True)


class Checker:
    """Checks pages one after the other."""

    def __init__(self, program: Path, studio, seconds: float) -> None:
        self.program, self.studio, self.seconds = program, studio, seconds
        self.report = Report()
        self.setup = Setup(program)

    def check(self, page: Page) -> None:
        """Checks a page, and prints a line about it."""
        begun, failures, before = time.monotonic(), self.report.failures, self.report.done.copy()
        skipped = self.report.skipped.total()
        count, problems = check_links(page)
        self.report.done["links"] += count
        for line, problem in problems:
            self.report.fail(f"{page.name}:{line}", problem)
        self.check_blocks(page)
        counts = [f"{count} {what}" for what, count in (self.report.done - before).items()]
        if self.report.skipped.total() > skipped:
            counts.append(f"{self.report.skipped.total() - skipped} skipped")
        outcome = "ok" if self.report.failures == failures else "FAILED"
        print(f"{outcome:6} {page.name:45} {time.monotonic() - begun:6.1f} s  {', '.join(counts)}", flush=True)

    def check_blocks(self, page: Page) -> None:
        folder: Optional[Folder] = None
        failed_at = None
        for block in page.blocks:
            where = f"{page.name}:{block.line}"
            reason = NOT_RUN.match(block.comment)
            if reason:
                self.report.skipped[reason[1] or "no reason"] += 1
                if not reason[1]:
                    self.report.fail(where, "`not run:` needs a reason")
            elif block.language == "sh":
                if failed_at is not None:
                    self.report.skipped[f"{page.name}: the block in line {failed_at} failed"] += 1
                    continue
                folder = folder or Folder(self.program)
                if not self.run(where, block, folder):
                    failed_at = block.line
            elif block.language in OTHER_SHELLS:
                self.report.fail(where, f"a block of commands must have the language sh, not {block.language}")
            elif not block.language:
                self.report.fail(where, "the block has no language: write sh, xml, json, or text for an output")
            elif block.language == "xml":
                self.check_xml(where, block)
            elif block.language == "json":
                self.check_json(where, block)
        if folder is not None and failed_at is None:
            folder.remove()
        elif folder is not None:
            print(f"       the folder of {page.name} is kept: {folder.path}")

    def run(self, where: str, block: Block, folder: Folder) -> bool:
        """Runs a block of commands. Returns whether it succeeded."""
        settings = {}
        if block.text.startswith(WITH_STUDIO):
            if self.studio is None:
                self.report.skipped[NEEDS_STUDIO] += 1
                return True
            settings = self.studio.settings()
        code, output = folder.run(block, settings, self.seconds)
        self.report.done["commands"] += 1
        if code is None:
            self.report.fail(where, f"the block did not end within {self.seconds:.0f} s", output)
        elif code:
            self.report.fail(where, f"exit code {code}", output)
        return code == 0

    def check_xml(self, where: str, block: Block) -> None:
        """Checks a labeling config, or a part of one."""
        is_config = block.text.lstrip().startswith("<View")
        try:
            ET.fromstring(block.text if is_config else f"<View>{block.text}</View>")
        except ET.ParseError as error:
            self.report.fail(where, f"it is not well-formed XML: {error}")
            return
        self.report.done["configs" if is_config else "parts of configs"] += 1
        if is_config:
            self.setup.send(where, config=block.text)
            problem = self.studio and self.studio.config_problem(block.text)
            if problem:
                self.report.fail(where, f"Label Studio does not accept the labeling config: {problem}")

    def check_json(self, where: str, block: Block) -> None:
        """Checks JSON, and extra params with groundling."""
        try:
            content = json.loads(block.text)
        except ValueError as error:
            self.report.fail(where, f"it is not JSON: {error}")
            return
        is_params = block.comment == EXTRA_PARAMS
        self.report.done["extra params" if is_params else "json"] += 1
        if is_params:
            self.setup.send(where, extra_params=content)


class Studio:
    """Label Studio with a project of shapes, and a groundling that is connected to it."""

    def __init__(self, program: Path, folder: Path) -> None:
        os.environ["GROUNDLING_BIN"] = str(program)
        # needs third-party packages
        from api import Api
        from shapes import PAGES
        from studio import STUDIO_SECONDS, World

        self.world = World(folder)
        self.world.logs.mkdir(parents=True, exist_ok=True)
        try:
            self.world.start_label_studio()
            self.world.studio.wait_for_health(STUDIO_SECONDS)
            self.api = self.world.api = Api(self.world.studio.url)
            # on a free port, because a page may start a server on the usual one
            backend = self.world.start_groundling("book", self.world.secrets["legacy token"])
            labels = '<Label value="Circle" background="orange"/><Label value="Star" background="purple"/>'
            project = self.api.project(
                "Shapes",
                f"""<View><Image name="image" value="$image"/><TextArea name="prompt" toName="image"/>
                <RectangleLabels name="label" toName="image">{labels}</RectangleLabels>
                <BrushLabels name="label2" toName="image">{labels}</BrushLabels></View>""",
            )
            if project != 1:
                raise SystemExit(f"the project of the book has the number {project}, not 1")
            files = [scene.save(folder / f"pictures/shapes-{number}.png") for number, scene in enumerate(PAGES, 1)]
            tasks = self.api.upload(project, *files)
            self.annotate(tasks[0], PAGES[0])
            self.api.connect(project, backend)
        except BaseException:
            self.world.stop()
            raise

    def annotate(self, task: int, scene) -> None:
        """Annotates a task with the boxes of the circles and stars of its scene."""
        width, height = scene.size
        result = []
        for number, item in enumerate(scene.items):
            if item.kind in ("circle", "star"):
                left, top, right, bottom = scene.mask_of(item).getbbox()
                value = {"x": 100 * left / width, "y": 100 * top / height, "rotation": 0}
                value |= {"width": 100 * (right - left) / width, "height": 100 * (bottom - top) / height}
                region = {"id": f"shape{number}", "from_name": "label", "to_name": "image", "type": "rectanglelabels"}
                region |= {"original_width": width, "original_height": height, "image_rotation": 0}
                result.append(region | {"value": value | {"rectanglelabels": [item.kind.capitalize()]}})
        self.api.post(f"/api/tasks/{task}/annotations", {"result": result})

    def settings(self) -> dict:
        """The variables of commands that use Label Studio."""
        return {"LABEL_STUDIO_HOST": self.world.studio.url, "LABEL_STUDIO_ACCESS_TOKEN": self.api.pat}

    def config_problem(self, config: str) -> str:
        """Why Label Studio does not accept a labeling config; empty if it does."""
        answer = self.api.send("POST", "/api/projects/validate", json={"label_config": config})
        return "" if answer.ok else answer.text[:500]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groundling", type=Path, default=ROOT / "target/release/groundling", metavar="PROGRAM")
    parser.add_argument("--label-studio", action="store_true", help="also run the blocks that need Label Studio")
    parser.add_argument("--only", help="pages to check, by their paths in the repository, separated by commas")
    parser.add_argument("--timeout", type=float, default=300, help="time limit of a block, in seconds")
    args = parser.parse_args()
    program = args.groundling.resolve()
    if not os.access(program, os.X_OK):
        parser.error(f"there is no program {program}: run cargo build --release, or name another one with --groundling")
    book = [Page(ROOT / "README.md"), *pages()]
    wanted = args.only.split(",") if args.only else [page.name for page in book]
    unknown = sorted(set(wanted) - {page.name for page in book})
    if unknown:
        parser.error(f"there is no page {', '.join(unknown)}; the pages are {', '.join(page.name for page in book)}")

    studio = None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated by SIGTERM"))
    with tempfile.TemporaryDirectory(prefix="groundling-book-studio-") as folder:
        try:
            if args.label_studio:
                studio = Studio(program, Path(folder))
            checker = Checker(program, studio, args.timeout)
            for page in book:
                if page.name in wanted:
                    checker.check(page)
            checker.setup.finish(checker.report)
        finally:
            if studio is not None:
                studio.world.stop()
    report = checker.report
    if not args.only:
        for problem in check_summary(book):
            report.fail("docs/SUMMARY.md", problem)
    print(", ".join(f"{count} {what}" for what, count in report.done.items()))
    if report.skipped:
        print(f"{report.skipped.total()} blocks were not run:")
        for reason, count in report.skipped.most_common():
            print(f"{count:5} {reason}")
    print(f"{report.failures} failures" if report.failures else "no failures", flush=True)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
