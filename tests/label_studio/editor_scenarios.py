"""Scenarios in the page: pages, regions of interest, messages, ellipses and points, and the capability protocol."""

import base64
import io
import time
from pathlib import Path
from typing import List

import numpy as np
import pictures
from api import CONFIG, LABEL_TAGS, LABELS, PROMPT, SHAPES, SMART_CONFIG, shapes_config
from page_scenarios import CIRCLE_BOX, CIRCLE_CENTRE, page_of
from PIL import Image
from regions import check_prediction, drawn, iou, mask_box, mask_of, pairs, rectangle_box, summary
from studio import World, ensure, until

# a checkpoint folder
SAM2 = Path(__file__).resolve().parents[1] / "reference/segmenter/sam2"
# the lines for messages in docs/labeling-configs/messages.md
STATUS = """<View style="display:none"><Text name="groundling" value="${key}"/></View>"""
STATUS_AREA = """<Style>.groundling-status { display: block !important }</Style>
<View className="groundling-status" visibleWhen="choice-selected" whenTagName="groundling-status">
  <TextArea name="groundling-status" toName="groundling" smart="false" maxSubmissions="0"/>
</View>"""
RECTANGLES = '<RectangleLabels name="label" toName="image">{labels}</RectangleLabels>'
BRUSHES = '<BrushLabels name="label2" toName="image">{labels}</BrushLabels>'
ROI = '<RectangleLabels name="roi" toName="image"><Label value="Search here" background="gray"/></RectangleLabels>'


def with_status(config: str, key: str = "image") -> str:
    """A config with the text area for messages; its object tag comes first, so that the data stays an image for Label Studio."""
    return config.replace("<View>", "<View>" + STATUS.format(key=key) + STATUS_AREA, 1)


def message(regions: list) -> str:
    """The text for the annotator in an answer; empty if there is none."""
    texts = [region["value"]["text"][0] for region in regions if region["from_name"] == "groundling-status"]
    ensure(len(texts) <= 1, f"several messages: {texts}")
    return texts[0] if texts else ""


def no_message(what: str, regions: list) -> None:
    """Checks that the message for the annotator was not saved."""
    ensure(message(regions) == "", f"{what}: the message was saved: {message(regions)}")


def status(world: World) -> None:
    """The text for the annotator is shown at once, replaced by the next answer, and not part of what is saved."""
    api, page = world.api, page_of(world)
    config = with_status(shapes_config(RECTANGLES, BRUSHES))
    project = api.project("messages", config)
    [task] = api.upload(project, SHAPES)
    api.connect(project, world.legacy)
    kinds = {column["id"]: column["type"] for column in api.get(f"/api/dm/columns?project={project}")["columns"]}
    ensure(kinds["image"] == "Image", f"the data manager shows the image as {kinds['image']}")

    page.open_task(project, task)
    page.enable_auto_annotation()
    answer = page.type_prompt_for_message("green heart.")
    shown = page.messages()
    page.screenshot("status-1-nothing-found")
    ensure(len(shown) == 1 and shown[0] == message(answer["result"]), f"shown: {shown}; {answer['result']}")
    ensure(shown[0].startswith("nothing above 0.30; best: green heart 0."), f"the message is {shown[0]!r}")

    page.delete_prompt()
    answer = page.type_prompt(PROMPT)
    page.screenshot("status-2-found")
    ensure(page.messages() == ["found 1 blue star, 1 red circle"], f"shown: {page.messages()}")
    page.accept_all()
    saved = page.save("submit")
    no_message("submitted", saved["result"])
    [annotation] = api.annotations(task)
    no_message("annotation", annotation["result"])
    ensure(len(drawn(annotation["result"])) == 4, f"saved: {summary(annotation['result'])}")
    page.screenshot("status-3-submitted")
    for export in ("JSON", "COCO", "YOLO"):
        answer = api.send("GET", f"/api/projects/{project}/export?exportType={export}")
        ensure(answer.ok, f"export to {export}: {answer.status_code}")
    page.check_errors("messages")

    # an image that cannot be fetched
    api.import_urls(project, ["http://127.0.0.1:9/missing.png"])
    broken = max(api.tasks(project))
    ml = api.get(f"/api/ml?project={project}")[0]["id"]
    context = {"value": {"text": ["cup"]}, "id": "p1", "from_name": "prompt", "to_name": "image", "type": "textarea"}
    answer = api.suggest(ml, broken, {"result": [context]})
    ensure("127.0.0.1:9" in message(answer), f"an image that cannot be fetched: {answer}")


def pages(world: World) -> None:
    """With several pages, a prompt searches the page that is shown, and its regions stay there; a batch searches all."""
    api, page = world.api, page_of(world)
    config = shapes_config(RECTANGLES, BRUSHES).replace('value="$image"', 'valueList="$images"')
    config = config.replace('name="prompt" toName="image"', 'name="prompt" toName="image" perItem="true"')
    project = api.project("pages", config)
    uploaded = api.upload(api.project("pictures of the pages"), SHAPES, *pictures.varied(world.out / "pictures/pages", 2))
    urls = [api.get(f"/api/tasks/{task}")["data"]["image"] for task in uploaded]
    api.post(f"/api/projects/{project}/import", [{"data": {"images": urls}}])
    [task] = api.tasks(project)
    ml = api.connect(project, world.legacy)["id"]

    page.open_task(project, task)
    page.enable_auto_annotation()
    page.show_page(1)
    answer = page.type_prompt("red circle.")
    page.screenshot("pages-1-suggestions")
    ensure(len(answer["result"]) == 2, f"typed on the second page: {summary(answer['result'])}")
    ensure({region["item_index"] for region in answer["result"]} == {1}, f"regions on pages: {answer['result']}"[:400])
    page.accept_all()
    ensure(page.regions_of_page() == 2, f"{page.regions_of_page()} regions on the second page")
    page.screenshot("pages-2-accepted")
    page.show_page(0)
    ensure(page.regions_of_page() == 0, f"{page.regions_of_page()} regions on the first page")
    page.show_page(2)
    answer = page.type_prompt("blue star.")
    ensure({region["item_index"] for region in answer["result"]} == {2}, f"third page: {answer['result']}"[:400])
    page.accept_all()
    page.screenshot("pages-3-third-page")
    page.save("submit")
    [annotation] = api.annotations(task)
    found = sorted((region["item_index"], *summary([region])[0]) for region in drawn(annotation["result"]))
    expected = [(1, "brushlabels", LABELS[0]), (1, "rectanglelabels", LABELS[0])]
    expected += [(2, "brushlabels", LABELS[1]), (2, "rectanglelabels", LABELS[1])]
    ensure(found == expected, f"saved: {found}")
    page.check_errors("pages")

    # a smart rectangle on the second page
    box = dict(zip(("x", "y"), (100 * share for share in CIRCLE_BOX[:2])), width=29, height=38.5, rotation=0)
    drawn_box = {"value": box | {"rectanglelabels": ["Red Circle"]}, "id": "s1", "from_name": "label"}
    drawn_box |= {"to_name": "image", "type": "rectanglelabels", "item_index": 0, "image_rotation": 0}
    [mask] = drawn(api.suggest(ml, task, {"result": [drawn_box]}))
    ensure((mask["type"], mask["item_index"]) == ("brushlabels", 0), f"smart rectangle: {summary([mask])}")
    batch = drawn(api.test_request(ml))
    ensure({region["item_index"] for region in batch} == {0, 1, 2}, f"batch: pages {[r['item_index'] for r in batch]}")
    check_prediction("batch of pages", {"result": batch}, config)


def roi(world: World) -> None:
    """A region of interest drawn with its smart tool finds what the whole image hides, and limits the next prompt."""
    api, page = world.api, page_of(world)
    config = shapes_config(RECTANGLES, BRUSHES)
    config = with_status(config.replace("<Image", ROI + "<Image", 1))
    project = api.project("region of interest", config)
    picture, place = pictures.hidden(world.out / "pictures/hidden.png")
    [task] = api.upload(project, picture)
    api.connect(project, world.legacy)

    page.open_task(project, task)
    page.enable_auto_annotation()
    page.type_prompt_for_message(PROMPT)
    page.screenshot("roi-1-whole-image")
    ensure(page.messages()[0].startswith("nothing above 0.30"), f"in the whole image: {page.messages()}")
    answer = page.smart_rectangle("Search here", place)
    page.screenshot("roi-2-region-of-interest")
    ensure(len(drawn(answer["result"])) == 4, f"in the region of interest: {summary(answer['result'])}")
    for region in drawn(answer["result"]):
        if region["type"] == "rectanglelabels":
            x0, y0, x1, y1 = rectangle_box(region)
            size = region["original_width"], region["original_height"]
            inside = place[0] * size[0] <= x0 + 2 and x1 <= place[2] * size[0] + 2
            ensure(inside and place[1] * size[1] <= y0 + 2 and y1 <= place[3] * size[1] + 2, f"{region} is outside")
    # typed at once, before the editor has saved a draft with the rectangle
    page.delete_prompt()
    answer = page.type_prompt("blue star.")
    ensure(summary(drawn(answer["result"])) == sorted([("brushlabels", LABELS[1]), ("rectanglelabels", LABELS[1])]),
           f"typed after the rectangle: {summary(answer['result'])}")
    page.screenshot("roi-3-next-prompt")
    page.accept_all()
    page.save("submit")
    [annotation] = api.annotations(task)
    ensure(len([r for r in drawn(annotation["result"]) if r["from_name"] != "roi"]) == 2, summary(annotation["result"]))
    page.check_errors("region of interest")


def shapes(world: World) -> None:
    """Ellipses and points are drawn where the objects are, if extra_params names their controls; only those get regions."""
    api, page = world.api, page_of(world)
    names = {"EllipseLabels": "ellipse", "KeyPointLabels": "point", "RectangleLabels": "label"}
    config = shapes_config(*(f'<{tag} name="{name}" toName="image">{{labels}}</{tag}>' for tag, name in names.items()))
    project = api.project("ellipses and points", config)
    [task] = api.upload(project, SHAPES)
    api.connect(project, world.legacy, extra_params={"outputs": ["ellipse", "KeyPointLabels"]})
    page.open_task(project, task)
    page.enable_auto_annotation()
    answer = page.type_prompt(PROMPT)
    expected = sorted((kind, label) for kind in ("ellipselabels", "keypointlabels") for label in LABELS)
    ensure(summary(answer["result"]) == expected, f"regions: {summary(answer['result'])}")
    check_prediction("ellipses and points", {"result": answer["result"]}, config)
    page.accept_all()
    page.screenshot("shapes-accepted")
    page.save("submit")
    [annotation] = api.annotations(task)
    saved = drawn(annotation["result"])
    ensure(summary(saved) == expected, f"saved: {summary(saved)}")
    for region in saved:
        value = region["value"]
        if value[region["type"]] == ["Red Circle"]:
            close = all(abs(value[key] / 100 - at) < 0.03 for key, at in zip("xy", CIRCLE_CENTRE))
            ensure(close, f"{region['type']} of the circle is at {value['x']}, {value['y']}")
    page.check_errors("ellipses and points")


def task_labels(world: World) -> None:
    """Labels from the task's data are searched for, and kept by the editor."""
    api, page = world.api, page_of(world)
    config = shapes_config('<RectangleLabels name="label" toName="image" value="$labels"/>')
    project = api.project("labels from data", config)
    uri = pictures.data_uri_of(SHAPES, world.out / "pictures/labels")
    labels = [{"value": "Red Circle", "background": "red"}, {"value": "Sky", "alias": "sky", "predicted_values": "blue star"}]
    api.post(f"/api/projects/{project}/import", [{"data": {"image": uri, "labels": labels}}])
    [task] = api.tasks(project)
    ml = api.connect(project, world.legacy)["id"]
    found = drawn(api.test_request(ml))
    ensure(summary(found) == [("rectanglelabels", "Red Circle"), ("rectanglelabels", "sky")], f"batch: {summary(found)}")
    page.open_task(project, task)
    page.enable_auto_annotation()
    answer = page.type_prompt(PROMPT)
    ensure(summary(answer["result"]) == summary(found), f"typed: {summary(answer['result'])}")
    page.accept_all()
    page.screenshot("labels-from-data")
    page.save("submit")
    [annotation] = api.annotations(task)
    ensure(summary(drawn(annotation["result"])) == summary(found), f"saved: {summary(annotation['result'])}")
    page.check_errors("labels from data")


def white_mask(item: dict) -> np.ndarray:
    """The mask of an answer of the capability protocol: the pixels whose red channel is above 127."""
    head, data = item["value"]["imageDataURL"].split(",", 1)
    ensure((item["type"], head) == ("bitmask", "data:image/png;base64"), f"a mask that is {item['type']} {head}")
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    ensure(image.shape[:2] == (item["value"]["height"], item["value"]["width"]), f"a mask of {image.shape}")
    return image[:, :, 0] > 127


def protocol(world: World) -> None:
    """The capability protocol through Label Studio's own road for interactive requests."""
    api = world.api
    config = f'<View><Image name="image" value="$image"/><BitmaskLabels name="m" toName="image">{LABEL_TAGS}</BitmaskLabels></View>'
    project = api.project("capability protocol", config)
    tasks = api.upload(project, *pictures.varied(world.out / "pictures/protocol", 2, first=40))
    ml = api.connect(project, world.legacy)["id"]
    x, y = (100 * share for share in CIRCLE_CENTRE)

    def ask(context: dict, task: int = tasks[0]) -> List[dict]:
        return api.suggest(ml, task, context)

    def click(*points: tuple) -> dict:
        regions = [{"x": x, "y": y, "positive": positive} for x, y, positive in points]
        return {"result": [{"type": "keypointlabels", "value": value} for value in regions]}

    [capabilities] = ask({"event": "capabilities"})
    ensure(capabilities["type"] == "capabilities", f"{capabilities}")
    ensure(capabilities["value"]["prompts"] == ["point", "box"], f"{capabilities['value']}")
    [ack] = ask({"event": "prewarm"})
    ensure((ack["type"], ack["value"]["status"]) == ("prewarm_ack", "ok"), f"{ack}")
    until("the image is prepared", lambda: ask({"event": "prewarm"})[0]["value"]["cached"] == [0])
    times = {}
    for what, task in (("with prewarm", tasks[0]), ("without prewarm", tasks[1])):
        begun = time.monotonic()
        ask(click((50, 20, True)), task)
        times[what] = time.monotonic() - begun
    print("       first click through Label Studio: " + ", ".join(f"{k} {v * 1000:.0f} ms" for k, v in times.items()))
    [item] = ask(click((x, y, True)))
    mask = white_mask(item)
    height, width = mask.shape
    ensure(mask[int(y * height / 100), int(x * width / 100)], "the mask does not contain the click")
    left, top, right, bottom = CIRCLE_BOX
    box = (left * width, top * height, right * width, bottom * height)
    ensure(iou(box, mask_box(mask)) > 0.5, f"IoU with the circle {iou(box, mask_box(mask)):.2f}")
    value = {"x": 100 * left, "y": 100 * top, "width": 100 * (right - left), "height": 100 * (bottom - top)}
    [item] = ask({"result": [{"type": "rectanglelabels", "value": value}]})
    ensure(iou(box, mask_box(white_mask(item))) > 0.7, "the mask of a rectangle is not the circle")
    ensure(ask(click((x, y, False))) == [], "a negative click alone has a mask")
    ensure(ask({"event": "track"}) == [], "an unknown event has an answer")
    [ack] = ask({"event": "release"})
    ensure((ack["type"], ack["value"]) == ("release_ack", {"status": "released"}), f"{ack}")


def family(world: World) -> None:
    """Prompt, click and rectangle with a small SAM 2 as segmenter. Its weights are random, so only the form of its masks is
    checked, and that the page keeps them."""
    api, page = world.api, page_of(world)
    groundling = world.start_groundling("sam2", world.secrets["legacy token"], SEGMENTER=str(SAM2))
    try:
        project = api.project("SAM 2")
        [task] = api.upload(project, SHAPES)
        api.connect(project, groundling)
        page.open_task(project, task)
        page.enable_auto_annotation()
        answer = page.type_prompt(PROMPT)
        ensure(summary(answer["result"]) == pairs(), f"typed: {summary(answer['result'])}")
        check_prediction("SAM 2, prompt", {"result": answer["result"]}, CONFIG)
        page.accept_all()
        page.save("submit")
        page.screenshot("family-1-submitted")
        [annotation] = api.annotations(task)
        saved = {region["id"]: region["value"] for region in drawn(annotation["result"])}
        for region in answer["result"]:
            if region["type"] == "brushlabels":
                same = np.array_equal(mask_of(region), mask_of({**region, "value": saved[region["id"]]}))
                ensure(same, f"the saved mask {region['id']} is another one")
        page.check_errors("SAM 2, prompt")

        project = api.project("SAM 2, smart tools", SMART_CONFIG)
        task, other = api.upload(project, SHAPES, SHAPES)
        ml = api.connect(project, groundling)["id"]
        x, y = (100 * share for share in CIRCLE_CENTRE)
        point = {"x": x, "y": y, "width": 0.23, "labels": ["Red Circle"], "keypointlabels": ["Red Circle"]}
        click = {"value": point, "is_positive": True, "id": "click", "from_name": "point", "type": "keypointlabels"}
        common = {"original_width": 640, "original_height": 480, "image_rotation": 0, "to_name": "image"}
        answer = api.suggest(ml, task, {"result": [common | click | {"origin": "manual"}]})
        check_one_mask("SAM 2, click", answer)
        page.open_task(project, other)
        page.enable_auto_annotation()
        check_one_mask("SAM 2, rectangle", page.smart_rectangle("Red Circle", CIRCLE_BOX)["result"])
        page.accept_all()
        page.screenshot("family-2-rectangle")
        page.check_errors("SAM 2, rectangle")
    finally:
        groundling.stop()


def check_one_mask(what: str, regions: list) -> None:
    """Checks that the regions are one mask of the label, which is not empty."""
    ensure(summary(regions) == [("brushlabels", "Red Circle")], f"{what}: {summary(regions)}")
    check_prediction(what, {"result": regions}, SMART_CONFIG)
    ensure(mask_of(regions[0]).any(), f"{what}: the mask is empty")
