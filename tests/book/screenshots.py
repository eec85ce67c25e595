"""Makes the pictures of the book from the real Label Studio and the real playground, with the demo models.

    pip install -r tests/label_studio/requirements.txt    (and Debian's chromium)
    cargo build --release
    python tests/book/screenshots.py [--only NAME[,NAME]]

Run it for every release, and look at the pictures before you commit them. The labeling config of a picture is that of the page with the
same name, so that picture and page show the same; without such a page it is the one below. A line is printed for each picture. It
takes about three minutes. GROUNDLING_BIN selects another binary than target/release/groundling. Logs, and a screenshot of what
failed, are in target/screenshots.
"""

import argparse
import base64
import io
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tests" / folder) for folder in ("label_studio", "simulation")]

from api import Api  # noqa: E402
from browser import CHROMIUM, FLAGS, Browser  # noqa: E402
from pages import DOCS, config_of  # noqa: E402
from server import Server, environment  # noqa: E402
from shapes import PAGES, PART, SHAPES, SMALL, Scene, random_scene  # noqa: E402
from studio import GROUNDLING, STUDIO_SECONDS, World, ensure, free_port, until  # noqa: E402

MAX_WIDTH, MAX_BYTES, MAX_TOTAL = 1600, 100_000, 1_000_000
# pixels of a picture for each pixel of the page
SCALE = 1.25
# the editor with the region list; the other pictures of the editor show only the labeling config, and need less width
WIDE, NARROW = (1360, 830), (900, 1100)

LABELS = '<Label value="Circle" background="orange"/><Label value="Star" background="purple"/>'
TEXT_AREA = '<TextArea name="prompt" toName="image" rows="1" maxSubmissions="1" showSubmitButton="true"/>'
IMAGE = '<Image name="image" value="$image" smoothing="false"/>'
BOXES = f'<RectangleLabels name="label" toName="image">{LABELS}</RectangleLabels>'
MASKS = f'<BrushLabels name="label2" toName="image">{LABELS}</BrushLabels>'
STATUS = """<View style="display:none"><Text name="groundling" value="$image"/></View>
<Style>.groundling-status { display: block !important }</Style>
<View className="groundling-status" visibleWhen="choice-selected" whenTagName="groundling-status">
<TextArea name="groundling-status" toName="groundling" smart="false" maxSubmissions="0"/></View>"""
# the labeling configs of pictures without a page; labels are above the image, because a brush's slider covers what is there
CONTROLS = {
    "boxes": BOXES + IMAGE,
    "boxes-and-masks": BOXES + MASKS + IMAGE,
    "polygons": f'<PolygonLabels name="outline" toName="image">{LABELS}</PolygonLabels>{IMAGE}',
    "bitmasks": f'<BitmaskLabels name="mask" toName="image">{LABELS}</BitmaskLabels>{IMAGE}',
    "many-pages": BOXES + MASKS + IMAGE.replace("value", "valueList"),
    "smart-tools": f'<KeyPointLabels name="point" toName="image" smart="true">{LABELS}</KeyPointLabels>{BOXES}{MASKS}{IMAGE}',
    "regions-of-interest": f"""<RectangleLabels name="roi" toName="image"><Label value="Search here" background="gray"/>
        </RectangleLabels>{BOXES}{MASKS}{IMAGE}""",
    "thresholds": f"""<Header>Box threshold</Header>
        <Number name="box_threshold" toName="image" min="0" max="1" step="0.05" defaultValue="0.3" slider="true"/>{BOXES}{IMAGE}""",
    "messages": STATUS + BOXES + IMAGE,
}
# the labels of the first picture; their colours are not those of the shapes
EDITOR_LABELS = {"Red circle": "#00B8D9", "Yellow star": "#FF3B7F", "Purple heart": "#FFC400"}
EDITOR_PROMPT = "red circle. yellow star. purple heart."


def labeling_config(name: str, docs: Path) -> str:
    """The labeling config of a page, else the built-in one."""
    area = TEXT_AREA.replace("/>", ' perItem="true"/>') if name == "many-pages" else TEXT_AREA
    return config_of(name, docs) or f'<View><View className="prompt">{area}</View>{CONTROLS[name]}</View>'


def prompt_of(config: str) -> str:
    """A prompt with the labels of a labeling config, without those of regions of interest."""
    labels = {
        label.get("value"): None
        for control in ET.fromstring(config).iter()
        if control.get("name") != "roi"
        for label in control.findall("Label")
    }
    return ". ".join(labels).lower()


def save(png: bytes, path: Path, box: Optional[tuple[int, int, int, int]] = None) -> None:
    """Writes a screenshot with a palette: with as many colours as fit into MAX_BYTES."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    if box:
        picture = picture.crop(box)
    ensure(picture.width <= MAX_WIDTH, f"{path.name} is {picture.width} pixels wide, more than {MAX_WIDTH}")
    for colours in (256, 192, 128, 96, 64, 48, 32):
        file = io.BytesIO()
        reduced = picture.quantize(colours, Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE)
        reduced.save(file, "PNG", optimize=True)
        if file.tell() <= MAX_BYTES:
            break
    else:
        ensure(False, f"{path.name} has {file.tell()} bytes with {colours} colours, more than {MAX_BYTES}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.getvalue())
    print(f"{path.name}: {picture.width}x{picture.height}, {file.tell() / 1000:.0f} kB, {colours} colours", flush=True)


class Studio:
    """Label Studio with groundling, and the page of a user."""

    def __init__(self, folder: Path, out: Path, docs: Path) -> None:
        self.out, self.docs = out, docs
        self.world = World(folder)
        self.pictures: dict[Path, str] = {}
        self.scenes: dict[Scene, int] = {}

    def start(self) -> None:
        """Starts both programs and logs in."""
        world = self.world
        world.logs.mkdir(parents=True, exist_ok=True)
        world.start_label_studio()
        world.studio.wait_for_health(STUDIO_SECONDS)
        world.api = Api(world.studio.url)
        self.groundling = world.start_groundling("book", world.secrets["legacy token"], port=usual_port())
        self.groundling.name = "groundling"
        self.browser = world.browser = Browser(world.studio.url, world.out / "screenshots", WIDE, SCALE)
        self.page = world.browser.page

    def url_of(self, picture: Path) -> str:
        """The address of a picture in Label Studio."""
        if picture not in self.pictures:
            api = self.world.api
            [task] = api.upload(api.project(f"Picture {picture.stem}"), picture)
            self.pictures[picture] = api.get(f"/api/tasks/{task}")["data"]["image"]
        return self.pictures[picture]

    def drawn(self, scene: Scene) -> Path:
        """A picture of a scene."""
        number = self.scenes.setdefault(scene, len(self.scenes) + 1)
        return scene.save(self.world.out / f"pictures/shapes-{number}.png")

    def open(self, title: str, config: str, *pictures: Path) -> None:
        """Opens a task with pictures in a new project. Auto-Annotation is on."""
        api = self.world.api
        image = ET.fromstring(config).find(".//Image")
        one, several = (image.get(name) for name in ("value", "valueList"))
        urls = [self.url_of(picture) for picture in pictures]
        self.project = api.project(title, config)
        data = {several[1:]: urls} if several else {one[1:]: urls[0]}
        api.post(f"/api/projects/{self.project}/import", [{"data": data}])
        api.connect(self.project, self.groundling)
        self.browser.open_task(self.project, api.tasks(self.project)[0])
        self.browser.enable_auto_annotation()

    def resize(self, size: tuple[int, int]) -> None:
        """Changes the size of the window."""
        self.page.set_viewport_size({"width": size[0], "height": size[1]})

    def save(self, name: str, *selectors: str, margin: int = 0) -> None:
        """Saves the part of the page with these elements, and a margin around it."""
        self.page.mouse.move(1, 1)
        self.browser.settle()
        boxes = [self.page.locator(selector).first.bounding_box() for selector in selectors]
        sides = [(box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]) for box in boxes]
        left, top = (min(side[i] for side in sides) - margin for i in (0, 1))
        right, bottom = (max(side[i] for side in sides) + margin for i in (2, 3))
        self.save_area(name, left, top, right, bottom)

    def save_area(self, name: str, *sides: float) -> None:
        """Saves a part of the page: the left, upper, right and lower side."""
        box = tuple(round(side * SCALE) for side in sides)
        save(self.page.screenshot(animations="disabled"), self.out / f"{name}.png", box)

    def save_content(self, name: str) -> None:
        """Saves the part of the page that the labeling config describes."""
        self.save(name, ".lsf-main-view__annotation > div", margin=12)

    def prompted(self, name: str) -> None:
        """What a prompt with all labels finds, accepted."""
        config = labeling_config(name, self.docs)
        self.resize(NARROW)
        self.open(name, config, self.drawn(SHAPES))
        self.browser.type_prompt(prompt_of(config))
        self.browser.accept_all()
        self.save_content(name)


def usual_port() -> int:
    """The default port of groundling, which is in a picture; another one if it is used."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 9090))
            return 9090
        except OSError:
            return free_port()


def editor(studio: Studio) -> None:
    """The whole editor: a prompt, and the boxes and masks of some of the shapes."""
    labels = "".join(f'<Label value="{label}" background="{colour}"/>' for label, colour in EDITOR_LABELS.items())
    controls = (BOXES + IMAGE + MASKS).replace(LABELS, labels)
    config = f'<View><View className="prompt">{TEXT_AREA}</View>{controls}</View>'
    studio.resize(WIDE)
    studio.open("Shapes", config, studio.drawn(SHAPES))
    # the panel with details of a region is empty, so it is collapsed
    studio.page.locator(".lsf-tabs-panel").first.locator(".lsf-tabs-panel__toggle").last.click()
    studio.browser.type_prompt(EDITOR_PROMPT)
    studio.browser.accept_all()
    studio.save("editor", ".lsf-sidepanels")


def many_pages(studio: Studio) -> None:
    """The second page of a task."""
    config = labeling_config("many-pages", studio.docs)
    studio.resize(NARROW)
    studio.open("many pages", config, *(studio.drawn(scene) for scene in PAGES))
    studio.browser.show_page(1)
    studio.browser.type_prompt(prompt_of(config))
    studio.browser.accept_all()
    studio.save_content("many-pages")


def smart_tools(studio: Studio) -> None:
    """A smart click on a shape, and the mask that it gives."""
    config = labeling_config("smart-tools", studio.docs)
    studio.resize(NARROW)
    studio.open("smart tools", config, studio.drawn(SHAPES))
    circle, (width, height) = SHAPES.items[-1], SHAPES.size
    studio.browser.smart_click("Circle", (circle.x, circle.y * width / height))
    studio.save_content("smart-tools")


def regions_of_interest(studio: Studio) -> None:
    """A region of interest, and what was found in it."""
    config = labeling_config("regions-of-interest", studio.docs)
    studio.resize(NARROW)
    studio.open("regions of interest", config, studio.drawn(SMALL))
    with studio.page.expect_response(lambda response: "/drafts" in response.url, timeout=20_000):
        # the smart tool's rectangle would not stay
        studio.browser.draw_rectangle("Search here", PART)
    studio.browser.type_prompt(prompt_of(config))
    studio.browser.accept_all()
    studio.save_content("regions-of-interest")


def thresholds(studio: Studio) -> None:
    """Number controls beside the image."""
    studio.prompted("thresholds")


def status_message(studio: Studio) -> None:
    """A message that says that nothing was found."""
    config = labeling_config("messages", studio.docs)
    studio.resize(NARROW)
    studio.open("messages", config, studio.drawn(PAGES[1]))
    studio.browser.type_prompt_for_message("moon")
    studio.save_content("status-message")


def connect(studio: Studio) -> None:
    """Settings > Model with the connected backend."""
    studio.resize(WIDE)
    studio.open("Shapes", labeling_config("boxes", studio.docs), studio.drawn(SHAPES))
    page = studio.page
    page.goto(f"{studio.world.studio.url}/projects/{studio.project}/settings/ml")
    page.get_by_text("Connected", exact=True).wait_for()
    studio.save_area("connect", 0, 0, 970, 280)


class Playground:
    """A groundling with the demo models, and its page."""

    def __init__(self, folder: Path, out: Path, browser) -> None:
        self.folder, self.out = folder, out
        self.server = Server(GROUNDLING, folder / "models", folder / "playground.log")
        self.page = browser.new_page(viewport={"width": 1000, "height": 800}, device_scale_factor=SCALE, color_scheme="light")
        self.page.goto(f"http://127.0.0.1:{self.server.port}/playground")
        self.shapes = SHAPES.save(folder / "shapes.png")
        self.page.set_input_files("#file", self.shapes)
        self.wait("document.querySelector('.pane canvas').width > 300")

    def wait(self, condition: str) -> None:
        """Waits until a script returns something true; the page's security policy forbids the browser's own way to wait."""
        until(condition, lambda: self.page.evaluate(condition))

    def find(self, prompt: str, objects: int) -> None:
        """Searches for a prompt, and waits for the objects and their masks."""
        pane = self.page.locator(".pane").first
        pane.locator("[name=prompt]").fill(prompt)
        pane.locator("button[type=submit]").click()
        self.wait(f"document.querySelector('.count').textContent.startsWith('{objects} object')")
        self.page.wait_for_timeout(1500)
        self.wait("document.getElementById('message').textContent === ''")

    def save(self, name: str) -> None:
        """Saves the whole page."""
        save(self.page.screenshot(full_page=True, animations="disabled"), self.out / f"{name}.png")


def playground(page: Playground) -> None:
    """A prompt in the playground."""
    page.find("circle. star", 4)
    page.save("playground")


def playground_status(page: Playground) -> None:
    """The page "Status" of the playground, after a prompt and a batch with a task that fails."""
    page.find("circle. star", 4)
    picture = "data:image/png;base64," + base64.b64encode(page.shapes.read_bytes()).decode()
    urls = [picture, "http://127.0.0.1/missing.png", picture]
    tasks = [{"id": number, "data": {"image": url}} for number, url in enumerate(urls, 11)]
    body = {"tasks": tasks, "label_config": labeling_config("boxes-and-masks", DOCS), "project": "7.1"}
    status, answer = page.server.send("POST", "/predict", body)
    ensure(status == 200, f"/predict: {status} {answer}")
    page.page.locator("#tab-status").click()
    page.page.wait_for_selector("#status table")
    page.page.wait_for_timeout(500)
    page.save("playground-status")


def evaluation_report(folder: Path, out: Path, browser) -> None:
    """The report of `groundling evaluate`, down to the first row of pictures."""
    report = evaluate(folder)
    page = browser.new_page(viewport={"width": 1000, "height": 1000}, device_scale_factor=SCALE, color_scheme="light")
    page.goto(report.as_uri())
    row = page.locator(".pictures figure").first.bounding_box()
    page.set_viewport_size({"width": 1000, "height": round(row["y"] + row["height"] + 8)})
    save(page.screenshot(), out / "evaluation-report.png")


def evaluate(folder: Path) -> Path:
    """Runs `groundling evaluate` on scenes whose shapes are so small that the models make mistakes. Returns the report."""
    truth = write_scenes(folder / "evaluation", 24)
    report = folder / "evaluation/report.html"
    command = [GROUNDLING, "evaluate", "--coco", truth, "--images", truth.parent, "--report", report]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    ensure(done.returncode == 0, f"groundling evaluate: {done.stderr}")
    return report


def write_scenes(folder: Path, count: int) -> Path:
    """Draws scenes, and writes their shapes as a COCO file. Returns the file."""
    labels = ["red circle", "yellow square", "white heart"]
    others = [("blue", "hexagon")]
    rng = random.Random(7)
    images, annotations = [], []
    for number in range(1, count + 1):
        scene = random_scene(rng, [tuple(label.split()) for label in labels] + others)
        picture = scene.save(folder / f"{number:03}.png")
        images.append({"id": number, "file_name": picture.name, "width": scene.size[0], "height": scene.size[1]})
        for item in scene.items:
            if (item.colour, item.kind) in others:
                continue
            mask = np.asarray(scene.mask_of(item)) > 127
            (top, *_, bottom), (left, *_, right) = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            box = {"bbox": [int(side) for side in (left, top, right - left + 1, bottom - top + 1)], "area": int(mask.sum())}
            label = {"category_id": labels.index(f"{item.colour} {item.kind}") + 1, "iscrowd": 0}
            annotation = {"id": len(annotations) + 1, "image_id": number, **label, **box}
            annotations.append(annotation | {"segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)}})
    categories = [{"id": number, "name": label} for number, label in enumerate(labels, 1)]
    file = folder / "annotations.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}), encoding="utf-8")
    return file


def run_lengths(mask: np.ndarray) -> list[int]:
    """The run lengths of a mask, column by column, zeros first."""
    values = np.concatenate([[False], mask.T.ravel(), [not mask.T.ravel()[-1]]])
    starts = np.flatnonzero(values[1:] != values[:-1])
    return [int(length) for length in np.diff(np.concatenate([[0], starts]))]


IN_STUDIO = {
    "editor": editor,
    "boxes": lambda studio: studio.prompted("boxes"),
    "boxes-and-masks": lambda studio: studio.prompted("boxes-and-masks"),
    "polygons": lambda studio: studio.prompted("polygons"),
    "bitmasks": lambda studio: studio.prompted("bitmasks"),
    "many-pages": many_pages,
    "smart-tools": smart_tools,
    "regions-of-interest": regions_of_interest,
    "thresholds": thresholds,
    "status-message": status_message,
    "connect": connect,
}
IN_PLAYGROUND = {"playground": playground, "playground-status": playground_status}
NAMES = [*IN_STUDIO, *IN_PLAYGROUND, "evaluation-report"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DOCS / "images", help="the folder of the pictures")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the pages whose labeling configs are used")
    parser.add_argument("--only", help=f"pictures to make, some of {','.join(NAMES)}")
    args = parser.parse_args()
    wanted = args.only.split(",") if args.only else NAMES
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        parser.error(f"unknown pictures {', '.join(unknown)}; the pictures are {', '.join(NAMES)}")
    if not os.access(GROUNDLING, os.X_OK):
        parser.error(f"there is no binary {GROUNDLING}: run cargo build --release, or set GROUNDLING_BIN")
    if not os.access(CHROMIUM, os.X_OK):
        parser.error(f"{CHROMIUM} is missing: install the package chromium")
    folder = ROOT / "target/screenshots"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    out, docs = args.out.resolve(), args.docs.resolve()
    if any(name in IN_STUDIO for name in wanted):
        make_in_studio([name for name in wanted if name in IN_STUDIO], Studio(folder / "studio", out, docs))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, headless=True)
        if any(name in IN_PLAYGROUND for name in wanted):
            page = Playground(folder, out, browser)
            try:
                for name in wanted:
                    if name in IN_PLAYGROUND:
                        IN_PLAYGROUND[name](page)
            finally:
                page.server.kill()
        if "evaluation-report" in wanted:
            evaluation_report(folder, out, browser)
        browser.close()
    total = sum(path.stat().st_size for path in args.out.glob("*.png"))
    print(f"together {total / 1000:.0f} kB")
    ensure(total <= MAX_TOTAL, f"the pictures have {total} bytes, more than {MAX_TOTAL}")


def make_in_studio(wanted: list[str], studio: Studio) -> None:
    """Makes pictures of Label Studio."""
    try:
        studio.start()
        for name in wanted:
            try:
                IN_STUDIO[name](studio)
            except Exception:
                studio.browser.screenshot(f"failed-{name}")
                print(f"{name} failed: see {studio.browser.folder}", file=sys.stderr)
                raise
    finally:
        studio.world.stop()


if __name__ == "__main__":
    main()
