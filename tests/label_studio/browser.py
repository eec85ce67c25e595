"""Label Studio's page in headless Chromium."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any, List, Optional, Tuple

import numpy as np
from PIL import Image
from playwright.sync_api import Error, Request, Response, sync_playwright
from studio import PASSWORD, USER, Skipped, ensure, until

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
TIMEOUT_MS = 45_000
INTERACTIVE = "/interactive-annotating"
# the parts of the page: in 1.23 by their test ids, which older releases do not have, or in their own markup
PROMPT = "[data-testid=textarea-input], textarea[aria-label='TextArea Input']"
ADD = "[data-testid=textarea-add-button], form:has(textarea[aria-label='TextArea Input']) button:has-text('Add')"
TYPED = "[data-testid=textarea-region], .lsf-text-area-region"
AUTO_ANNOTATION = (
    "label:has([data-testid=bottombar-auto-annotation-toggle]), .lsf-bottombar label:has-text('Auto-Annotation')"
)
ACCEPT_ALL = "[data-testid=bottombar-accept-suggestions-button], .lsf-auto-accept__action_type_accept"
SUBMIT = "[data-testid=bottombar-submit-button], .lsf-bottombar button:has-text('Submit')"
UPDATE = "[data-testid=bottombar-update-button], .lsf-bottombar button:has-text('Update')"
# a message of the editor about a tag that it does not know
UNKNOWN_TAG = "Tag with name (\\S+) is not registered"
# a script that returns the suggestions and regions in the store of the labeling editor
STORE = """() => {
  const annotation = Htx.annotationStore.selected;
  const describe = (region) => ({
    type: region.results[0].type, labels: [...(region.labels || [])], score: region.score,
    hasMask: region.type === "brushregion" && !!(region.rle && region.rle.length)
  });
  return {
    suggestions: [...annotation.suggestions.values()].map(describe),
    regions: annotation.regions.filter((region) => region.type).map(describe),
  };
}"""


class Browser:
    """The page of a user who is logged in, with one open task at a time. `size` is that of the window, and `scale` the number
    of pixels of a screenshot for each pixel of the page."""

    def __init__(self, host: str, folder: Path, size: Tuple[int, int] = (1500, 1250), scale: float = 1) -> None:
        self.host, self.folder = host, folder
        self.contexts: List[Any] = []
        self.errors: List[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.playwright = sync_playwright().start()
        self.chromium = self.playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, headless=True)
        viewport = {"width": size[0], "height": size[1]}
        self.page = self.chromium.new_page(viewport=viewport, device_scale_factor=scale)
        self.page.set_default_timeout(TIMEOUT_MS)
        self.page.route(lambda url: not url.startswith((host, "blob:", "data:")), lambda route: route.abort())
        self.page.on("request", self.record_context)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"{host}/user/login/")
        self.page.fill("input[name=email]", USER)
        self.page.fill("input[name=password]", PASSWORD)
        self.page.click("button[type=submit]")
        self.page.wait_for_url(lambda url: "login" not in url)

    def record_context(self, request: Request) -> None:
        """Records the contexts that the page sends to the backend."""
        if INTERACTIVE in request.url:
            self.contexts.append(request.post_data_json["context"])

    def close(self) -> None:
        """Ends Chromium."""
        self.chromium.close()
        self.playwright.stop()

    def screenshot(self, name: str) -> None:
        """Saves the page as a PNG."""
        self.page.screenshot(path=self.folder / f"{name}.png")

    def open_task(self, project: int, task: int) -> None:
        """Opens a task in the data manager, and waits until its picture is drawn."""
        self.contexts.clear()
        self.errors.clear()
        self.page.goto(f"{self.host}/projects/{project}/data?task={task}")
        problem = self.page.wait_for_function(
            f"(document.querySelector('.lsf-image img') && 'none') || document.body.innerText.match(/{UNKNOWN_TAG}/)"
        ).json_value()
        if problem != "none":
            raise Skipped(f"this Label Studio's editor does not know the tag {problem[1]}")
        self.page.wait_for_function(
            "task => typeof Htx === 'object' && Htx.task && Htx.task.id === task && Htx.annotationStore.selected",
            arg=task,
        )
        self.page.wait_for_function("(document.querySelector('.lsf-image img') || {}).naturalWidth > 0")
        self.page.wait_for_selector(".konvajs-content canvas")
        self.settle()

    def is_older(self) -> bool:
        """Whether the page is that of an older release (seen in 1.17), which has no test ids.

        Such a page draws regions that were accepted only after Submit, and sends no request without regions after that.
        """
        return self.page.locator("[data-testid=textarea-control]").count() == 0

    def settle(self) -> None:
        """Waits until two consecutive screenshots of the picture are equal."""
        last = None
        for _ in range(40):
            now = self.picture()
            if last is not None and now.shape == last.shape and (now == last).all():
                return
            last = now
            self.page.wait_for_timeout(250)

    def picture(self) -> np.ndarray:
        """The pixels of the picture with its regions. The editor creates a new canvas when predictions arrive."""

        def screenshot() -> Optional[bytes]:
            try:
                return self.page.locator(".konvajs-content").screenshot(animations="disabled")
            except Error as error:
                if "not attached" in str(error):
                    return None
                raise

        png = until("a screenshot of the picture", screenshot)
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(np.int16)

    def natural_size(self) -> Tuple[int, int]:
        """Width and height of the picture in the browser."""
        image = "document.querySelector('.lsf-image img')"
        return tuple(self.page.evaluate(f"[{image}.naturalWidth, {image}.naturalHeight]"))

    def wait_for_regions(self) -> None:
        """Waits until the selected annotation or prediction has regions."""
        self.page.wait_for_function(
            "((Htx.annotationStore.selected || {}).regions || []).some((region) => region.type)"
        )
        self.page.wait_for_selector(".konvajs-content canvas")
        self.settle()

    def store(self) -> dict:
        """Suggestions and regions of the open annotation."""
        return self.page.evaluate(STORE)

    def enable_auto_annotation(self) -> None:
        """Switches Auto-Annotation on; the browser remembers it."""
        if not self.page.evaluate("Htx.autoAnnotation"):
            self.page.locator(AUTO_ANNOTATION).first.click()
        self.page.wait_for_function("Htx.autoAnnotation")

    def type_prompt(self, text: str) -> dict:
        """Types a prompt and presses Add. Returns the response of the page, once its suggestions are drawn."""
        self.page.locator(PROMPT).first.fill(text)
        with self.page.expect_response(lambda response: INTERACTIVE in response.url) as waiting:
            self.page.locator(ADD).first.click()
        return self.suggestions(waiting.value)

    def type_prompt_for_message(self, text: str) -> dict:
        """Types a prompt that may find nothing, and waits for the message about it. Returns the response of the page."""
        self.page.locator(PROMPT).first.fill(text)
        with self.page.expect_response(lambda response: INTERACTIVE in response.url) as waiting:
            self.page.locator(ADD).first.click()
        until("a message", self.messages)
        self.settle()
        return waiting.value.json()["data"]

    def delete_prompt(self) -> None:
        """Deletes the typed prompt, so that another one can be typed."""
        self.page.locator(".prompt").locator(TYPED).locator("button").last.click()
        self.page.wait_for_selector(PROMPT)

    def messages(self) -> List[str]:
        """The visible texts for the annotator."""
        texts = self.page.locator(TYPED).all_inner_texts()
        typed = self.page.locator(".prompt").locator(TYPED).all_inner_texts()
        return [text.strip() for text in texts if text not in typed]

    def show_page(self, number: int) -> None:
        """Shows another page of an image tag with several, with the buttons for it; from 0."""
        current = "Htx.annotationStore.selected.names.get('image').currentImage"
        while (shown := self.page.evaluate(current)) != number:
            to = "right" if shown < number else "left"
            self.page.click(f".lsf-pagination__btn_arrow-{to}:not(.lsf-pagination__btn_arrow-{to}-double)")
            self.page.wait_for_function(f"{current} !== {shown}")
        self.page.wait_for_timeout(500)
        self.settle()

    def regions_of_page(self) -> int:
        """The number of accepted regions that the page shows."""
        return self.page.evaluate("Htx.annotationStore.selected.names.get('image').regs.length")

    def suggestions(self, response: Response) -> dict:
        """The response to an interactive request, once its suggestions are drawn."""
        answer = response.json()
        ensure("data" in answer and answer["data"]["result"], f"the page got no regions: {json.dumps(answer)[:500]}")
        self.page.wait_for_function("Htx.annotationStore.selected.suggestions.size > 0")
        self.settle()
        return answer["data"]

    def suggestion_count(self) -> str:
        """The number of suggestions as the bottom bar shows it."""
        return self.page.inner_text(".lsf-auto-accept__info")

    def accept_all(self) -> None:
        """Accepts all suggestions."""
        self.page.locator(ACCEPT_ALL).first.click()
        self.page.wait_for_function("Htx.annotationStore.selected.suggestions.size === 0")
        self.settle()

    def outliner(self) -> List[str]:
        """The lines of the region list."""
        lines = self.page.locator(".lsf-outliner-item__content").all_inner_texts()
        return [" ".join(line.split()) for line in lines]

    def save(self, button: str) -> dict:
        """Presses Submit or Update. Returns the annotation in Label Studio's response.

        With Auto-Annotation the page then sends an interactive request without regions for each typed prompt, in newer
        releases; a response is checked too.
        """

        def saved(response: Response) -> bool:
            return (
                response.request.method in ("POST", "PATCH")
                and "/annotations" in response.url
                and "draft" not in response.url
            )

        page, before = self.page, len(self.contexts)
        with contextlib.ExitStack() as stack:
            if not self.is_older():
                empty_request = stack.enter_context(page.expect_response(lambda response: INTERACTIVE in response.url))
            waiting = stack.enter_context(page.expect_response(saved))
            page.locator(SUBMIT if button == "submit" else UPDATE).first.click()
        ensure(waiting.value.ok, f"{button}: {waiting.value.status} {waiting.value.text()[:300]}")
        page.wait_for_selector(UPDATE)
        self.settle()
        sent = self.contexts[before:]
        if self.is_older():
            ensure(sent == [], f"after {button} the page sent {json.dumps(sent)[:300]}")
            return waiting.value.json()
        # one for each page with a prompt
        ensure(sent and not any(context["result"] for context in sent), f"after {button}: {json.dumps(sent)[:300]}")
        answer = empty_request.value.json()
        ensure("errors" not in answer, f"after {button} the backend failed: {answer}")
        ensure(not answer["data"]["result"], f"after {button} the backend found regions: {summary_of(answer)}")
        return waiting.value.json()

    def relabel_rectangle(self, labels: Tuple[str, ...]) -> None:
        """Selects the last rectangle in the region list and gives it one label after the other."""
        self.page.locator(".lsf-tree__node_type_rectangleregion").last.click()
        for label in labels:
            self.page.locator(".lsf-labels").first.get_by_text(label, exact=True).click()
            self.page.wait_for_timeout(200)

    def smart_rectangle(self, label: str, box: Tuple[float, float, float, float]) -> dict:
        """Draws a rectangle with the smart tool, in shares of the picture. Returns the response of the page."""
        self.select_label(label)
        self.page.locator(".lsf-toolbar .lsf-tool_smart").first.click()
        with self.page.expect_response(lambda response: INTERACTIVE in response.url) as waiting:
            self.drag(box)
        return self.suggestions(waiting.value)

    def draw_rectangle(self, label: str, box: Tuple[float, float, float, float]) -> None:
        """Draws a rectangle with the plain tool of a label, in shares of the picture."""
        self.select_label(label)
        self.drag(box)

    def drag(self, box: Tuple[float, float, float, float]) -> None:
        """Moves the pressed mouse from a corner of a box to the opposite one, in shares of the picture."""
        start, end = self.place(*box[:2]), self.place(*box[2:])
        mouse = self.page.mouse
        mouse.move(*start)
        mouse.down()
        mouse.move(*end, steps=8)
        mouse.up()

    def select_label(self, label: str) -> None:
        """Selects a label in the first control that has it."""
        self.page.locator(".lsf-labels", has_text=label).first.get_by_text(label, exact=True).click()

    def smart_click(self, label: str, point: Tuple[float, float]) -> dict:
        """Clicks with the smart tool, in shares of the picture. Returns the response of the page."""
        self.select_label(label)
        self.page.locator(".lsf-toolbar .lsf-tool_smart").first.click()
        with self.page.expect_response(lambda response: INTERACTIVE in response.url) as waiting:
            self.page.mouse.click(*self.place(*point))
        return self.suggestions(waiting.value)

    def place(self, x: float, y: float) -> Tuple[float, float]:
        """The position in the window of a place in the picture, which is in shares of it."""
        frame = self.page.locator(".konvajs-content").bounding_box()
        return frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]

    def check_errors(self, what: str) -> None:
        """Checks that no script of the page failed since the task was opened."""
        ensure(not self.errors, f"{what}: errors in the page: {self.errors[:3]}")


def summary_of(answer: dict) -> str:
    """The types of the regions in a response."""
    return str([region["type"] for region in answer["data"]["result"]])
