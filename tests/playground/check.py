"""The playground in headless Chromium, with the demo models.

    pip install -r tests/label_studio/requirements.txt    (and Debian's chromium)
    python tests/playground/check.py [--groundling BINARY] [--out FOLDER]

Prints a line for each step; the exit code is 1 after the first failed one. Screenshots are written to the folder.
"""

import argparse
import base64
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "simulation"))

from server import Server  # noqa: E402

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
SHAPES = ROOT / "examples" / "images" / "shapes.png"


def ensure(condition, text: str) -> None:
    if not condition:
        raise SystemExit(f"FAILED: {text}")


def step(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:5.1f} s] {text}", flush=True)


def count(pane) -> str:
    return pane.locator(".count").inner_text()


def wait_for_count(page: Page, pane, start: str) -> str:
    """Waits until the heading of a pane begins with a text. Returns it."""
    until(page, "([pane, start]) => pane.querySelector('.count').textContent.startsWith(start)",
                           [pane.element_handle(), start])  # fmt: skip
    return count(pane)


def until(page: Page, condition: str, arg=None) -> None:
    """Waits until a script returns something true. The page's security policy forbids Playwright's own way to wait."""
    deadline = time.monotonic() + 30
    while not page.evaluate(condition, arg):
        ensure(time.monotonic() < deadline, f"after 30 s this is not so: {condition}; the page says {page.locator('#message').inner_text()!r}")
        page.wait_for_timeout(30)


def set_slider(pane, name: str, value: float) -> None:
    pane.locator(f"[name={name}]").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", value
    )


class Requests:
    """The requests of the page, and those that leave the server."""

    def __init__(self, page: Page, host: str) -> None:
        self.paths, self.foreign, self.errors = [], [], []
        self.host = host
        page.on("request", self.add)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)

    def add(self, request) -> None:
        if request.url.startswith(self.host):
            self.paths.append(request.url[len(self.host) :])
        elif not request.url.startswith(("data:", "blob:")):
            self.foreign.append(request.url)

    def count(self, path: str) -> int:
        return sum(part.endswith(path) for part in self.paths)


def pixels(pane) -> str:
    """The contents of the canvas."""
    return pane.locator("canvas").evaluate("canvas => canvas.toDataURL()")


def check(browser, server: Server, out: Path) -> None:
    host = f"http://127.0.0.1:{server.port}"
    page = browser.new_page(viewport={"width": 1400, "height": 1200}, color_scheme="light")
    page.set_default_timeout(30_000)
    requests = Requests(page, host)
    page.goto(f"{host}/")
    ensure(page.url == f"{host}/playground", f"a browser that opens / is led to {page.url}")
    until(page, "document.getElementById('models').textContent.includes('demo')")
    step(f"/ leads to the page, which shows {page.locator('#models').inner_text()!r}")

    pane = page.locator(".pane").first
    page.set_input_files("#file", SHAPES)
    until(page, "document.querySelector('.pane canvas').width > 300")
    pane.locator("[name=prompt]").fill("red circle. blue star.")
    pane.locator("button[type=submit]").click()
    first = wait_for_count(page, pane, "2 objects")
    until(page, "document.querySelectorAll('.timings tr').length > 0")
    wait_for_masks(page, requests, 1)
    page.screenshot(path=out / "light.png", full_page=True)
    step(f"an uploaded image and a prompt: {first}")

    # the sliders run no detector
    pane.locator("[name=prompt]").fill("circle")
    pane.locator("[name=prompt]").press("Enter")
    wait_for_count(page, pane, "1 object")
    wait_for_masks(page, requests, 2)
    before, masks = requests.count("api/find"), requests.count("api/segment")
    drawn = pixels(pane)
    set_slider(pane, "box_threshold", 0.06)
    wait_for_count(page, pane, "2 objects")
    ensure(requests.count("api/find") == before, "the slider of the box threshold asked the detector again")
    wait_for_masks(page, requests, masks + 1)
    ensure(pixels(pane) != drawn, "the slider changed nothing in the picture")
    page.screenshot(path=out / "low-threshold.png", full_page=True)
    set_slider(pane, "box_threshold", 0.95)
    wait_for_count(page, pane, "0 objects")
    ensure("best candidate" in count(pane), f"without objects, the heading is {count(pane)!r}")
    set_slider(pane, "box_threshold", 0.4)
    wait_for_count(page, pane, "1 object")
    ensure(requests.count("api/find") == before, "a slider asked the detector again")
    pane.locator("[name=prompt]").fill("red circle. blue star.")
    pane.locator("[name=prompt]").press("Enter")
    wait_for_count(page, pane, "2 objects")
    step("the box threshold: 2 objects at 0.06, 1 at 0.4, none at 0.95, without another search")

    # the browser chooses the objects as the server does
    same = server_objects(server)
    shown = page.evaluate("[...document.querySelectorAll('.objects button')].map(button => button.innerText.split('\\n').map(t => t.trim()).filter(Boolean))")
    ensure([row[0] for row in shown] == [row[0] for row in same], f"the page shows {shown}, the server finds {same}")
    step("the objects and their order are those of /predict")

    params = json.loads(pane.locator("[name=params]").input_value())
    ensure(params == {"prompt": "red circle. blue star", "box_threshold": 0.4}, f"extra params: {params}")
    pane.locator(".outputs summary").click()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=host)
    pane.locator("[name=copy-config]").click()
    until(page, "document.getElementById('message').textContent === 'Copied.'")
    config = page.evaluate("navigator.clipboard.readText()")
    ensure('<Label value="red circle"' in config and "<TextArea" in config, f"the copied labeling config: {config}")
    status, answer = server.send("POST", "/setup", {"project": "1.1", "schema": config, "hostname": "", "access_token": "",
                                                    "extra_params": json.dumps(params)})  # fmt: skip
    ensure(status == 200, f"/setup does not accept the copied config: {answer}")
    step("the labeling config and the extra params were copied, and /setup accepts them")

    # marks: a click on the star, a point off it, a box
    box = server_box(same, "blue star")
    canvas = pane.locator("canvas")
    frame = canvas.bounding_box()
    width, height = picture_size(SHAPES)

    def at(x: float, y: float) -> dict:
        return {"x": x / width * frame["width"], "y": y / height * frame["height"]}

    pane.get_by_label("Point on it").check()
    canvas.click(position=at((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
    until(page, "document.querySelector('.count').textContent.includes('marked object')")
    pane.get_by_label("Point off it").check()
    canvas.click(position=at(max(box[0] - 20, 2), max(box[1] - 20, 2)))
    until(page, "[...document.querySelectorAll('#message')].every(m => m.textContent === '')")
    ensure(requests.count("api/mark") == 2, f"two points made {requests.count('api/mark')} requests")
    page.screenshot(path=out / "marked.png", full_page=True)
    pane.locator("[name=clear]").click()
    pane.get_by_label("Box", exact=True).check()
    page.mouse.move(frame["x"] + at(box[0], 0)["x"], frame["y"] + at(0, box[1])["y"])
    frame = canvas.bounding_box()
    start, end = at(box[0], box[1]), at(box[2], box[3])
    page.mouse.move(frame["x"] + start["x"], frame["y"] + start["y"])
    page.mouse.down()
    page.mouse.move(frame["x"] + end["x"], frame["y"] + end["y"], steps=5)
    page.mouse.up()
    until(page, "document.querySelector('.count').textContent.includes('marked object')")
    step("points on and off an object, and a box, make a mask")

    # the keyboard alone
    canvas.focus()
    page.keyboard.press("Escape")
    before = requests.count("api/mark")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('.count').textContent.includes('marked object')")
    ensure(requests.count("api/mark") == before + 1, "Enter on the picture did not mark a point")
    page.keyboard.press("Escape")
    step("the keyboard marks a point: " + (canvas.get_attribute("aria-label") or ""))

    # two prompts side by side
    page.get_by_label("Compare two").check()
    other = page.locator(".pane").nth(1)
    other.locator("[name=prompt]").fill("green square. yellow triangle.")
    other.locator("[name=prompt]").press("Enter")
    until(page, "!document.querySelectorAll('.count')[1].textContent.startsWith('Nothing')")
    page.wait_for_timeout(800)
    ensure(count(pane).startswith("2 objects"), f"the first pane has changed: {count(pane)}")
    page.screenshot(path=out / "compared.png", full_page=True)
    step(f"two prompts side by side: {count(pane)!r} and {count(other)!r}")

    # two detectors side by side: the second one is loaded now
    other.locator("[name=prompt]").fill("red circle. blue star.")
    other.locator("[name=detector]").select_option("demo")
    wait_for_count(page, other, "2 objects")
    ensure(count(pane) == count(other), f"the same detector finds {count(pane)} and {count(other)}")
    other.locator("[name=detector]").select_option("no-such-detector")
    page.wait_for_selector("#message.error")
    problem = page.locator("#message").inner_text()
    ensure("no-such-detector" in problem, f"the message does not name the detector: {problem}")
    other.locator("[name=detector]").select_option("")
    wait_for_count(page, other, "2 objects")
    step(f"two detectors side by side; one that does not exist: {problem[:90]!r}")

    # two segmenters side by side
    masks = requests.count("api/segment")
    other.locator("[name=segmenter]").select_option("demo")
    wait_for_masks(page, requests, masks + 1)
    canvases = [pixels(pane), pixels(other)]
    ensure(canvases[0] == canvases[1], "the same segmenter draws other masks")
    other.locator("[name=segmenter]").select_option("no-such-segmenter")
    until(page, "document.querySelector('#message.error')?.textContent.includes('no-such-segmenter')")
    ensure(pixels(other) != canvases[1], "the masks of another segmenter are still shown")
    page.screenshot(path=out / "segmenters.png", full_page=True)
    problem = page.locator("#message").inner_text()
    other.locator("[name=segmenter]").select_option("")
    wait_for_masks(page, requests, masks + 3)
    step(f"two segmenters side by side; one that does not exist: {problem[:90]!r}")

    # errors are in words
    other.locator("[name=prompt]").fill(" . ")
    other.locator("[name=prompt]").press("Enter")
    page.wait_for_selector("#message.error")
    step(f"a prompt without phrases: {page.locator('#message').inner_text()!r}")

    page.locator("#tab-status").click()
    page.wait_for_selector("#status table")
    text = page.locator("#status").inner_text()
    for part in ("ready", "Recent problems", "image features", "Batches", "LABEL_STUDIO_HOST is not set"):
        ensure(part in text, f"the status page does not contain {part!r}: {text}")
    page.screenshot(path=out / "status.png", full_page=True)
    step("the status page shows the models, the work, the caches, the problems and what doctor found")
    ensure(not requests.foreign, f"the page asked other hosts: {requests.foreign}")
    unexpected = [error for error in requests.errors if "400" not in error and "503" not in error]
    ensure(not unexpected, f"errors in the page: {unexpected}")

    dark = browser.new_page(viewport={"width": 420, "height": 1000}, color_scheme="dark")
    dark.goto(f"{host}/playground")
    dark.locator("#example").click()
    wait_for_count(dark, dark.locator(".pane").first, "2 objects")
    dark.wait_for_timeout(800)
    wide = dark.evaluate("document.documentElement.scrollWidth")
    ensure(wide <= 420, f"on a narrow screen the page is {wide} pixels wide")
    dark.screenshot(path=out / "dark-narrow.png", full_page=True)
    step("dark, on a narrow screen, with the example picture")


def wait_for_masks(page: Page, requests: Requests, at_least: int) -> None:
    until(page, "document.getElementById('message').textContent === ''")
    deadline = time.monotonic() + 20
    while requests.count("api/segment") < at_least:
        ensure(time.monotonic() < deadline, "no masks were requested")
        page.wait_for_timeout(50)
    page.wait_for_timeout(300)
    until(page, "document.getElementById('message').textContent === ''")


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height in the header of a PNG."""
    header = path.read_bytes()[16:24]
    return int.from_bytes(header[:4]), int.from_bytes(header[4:])


def server_objects(server: Server) -> list:
    """Phrase, and box in percent, of what /predict finds with the same prompt at the threshold 0.4, best first."""
    config = """<View><Image name="image" value="$image"/><TextArea name="prompt" toName="image"/>
    <RectangleLabels name="box" toName="image"><Label value="red circle"/><Label value="blue star"/></RectangleLabels><Number name="box_threshold" toName="image"/></View>"""
    image = "data:image/png;base64," + base64.b64encode(SHAPES.read_bytes()).decode()
    typed = {"type": "textarea", "from_name": "prompt", "to_name": "image", "id": "a", "value": {"text": ["red circle. blue star"]}}
    body = {"tasks": [{"id": 1, "data": {"image": image}, "annotations": [], "drafts": []}], "project": "2.1", "label_config": config,
            "params": {"login": None, "password": None, "context": {"result": [typed]}}}  # fmt: skip
    status, answer = server.send("POST", "/predict", body)
    ensure(status == 200, f"/predict answered {status}: {answer}")
    width, height = picture_size(SHAPES)
    found = []
    for region in answer["results"][0]["result"]:
        if region["type"] != "rectanglelabels" or region.get("score", 0) <= 0.4:
            continue
        value = region["value"]
        x, y = value["x"] / 100 * width, value["y"] / 100 * height
        phrase = value.get("rectanglelabels")
        found.append((phrase[0] if phrase else "", region["score"], [x, y, x + value["width"] / 100 * width, y + value["height"] / 100 * height]))
    return sorted(found, key=lambda row: -row[1])


def server_box(objects: list, phrase: str) -> list:
    return next(box for name, _, box in objects if name == phrase)


def check_access(binary: Path, folder: Path, out: Path) -> None:
    """The page can be switched off, and needs the credentials of the server."""
    server = Server(binary, folder / "models", out / "server.log", {"PLAYGROUND": "off"})
    try:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request("GET", "/", headers={"Accept": "text/html"})
        ensure(connection.getresponse().status == 200, "/ must answer JSON if there is no playground")
        for path in ("/playground", "/playground/app.js", "/playground/api/settings", "/playground/api/status"):
            status, answer = server.send("GET", path)
            ensure(status == 404 and "PLAYGROUND=off" in answer["error"], f"{path}: {status} {answer}")
    finally:
        server.kill()
    settings = {"BASIC_AUTH_USER": "ann", "BASIC_AUTH_PASS": "secret"}
    server = Server(binary, folder / "models", out / "server.log", settings)
    try:
        ensure(server.send("GET", "/playground")[0] == 401, "the page needs no credentials")
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        login = base64.b64encode(b"ann:secret").decode()
        connection.request("GET", "/playground", headers={"Authorization": f"Basic {login}"})
        ensure(connection.getresponse().status == 200, "the page is not served with credentials")
    finally:
        server.kill()
    step("the page can be switched off, and needs the credentials of the server")


def run_doctor(binary: Path, model_dir: Path) -> None:
    """Runs doctor without a Label Studio, which is a problem that it reports."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LABEL_STUDIO")}
    command = [binary, "doctor", "--model-dir", model_dir, "--detector", "demo", "--segmenter", "demo"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    ensure(result.returncode == 1 and "FAIL  LABEL_STUDIO_HOST" in result.stdout, f"doctor: {result.stdout}{result.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--groundling", type=Path, default=ROOT / "target" / "release" / "groundling")
    parser.add_argument("--out", type=Path, default=ROOT / "target" / "playground")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not os.access(CHROMIUM, os.X_OK):
        raise SystemExit(f"{CHROMIUM} is missing: install the package chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        check_access(args.groundling, Path(folder), args.out)
        settings = {"PLAYGROUND_DETECTORS": "demo, no-such-detector", "PLAYGROUND_SEGMENTERS": "demo, no-such-segmenter"}
        # its findings are on the status page
        (Path(folder) / "models").mkdir(exist_ok=True)
        run_doctor(args.groundling, Path(folder) / "models")
        server = Server(args.groundling, Path(folder) / "models", args.out / "server.log", settings)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, headless=True)
        try:
            check(browser, server, args.out)
        finally:
            browser.close()
            server.kill()
    step(f"passed; screenshots are in {args.out}")


if __name__ == "__main__":
    STARTED = time.monotonic()
    main()
