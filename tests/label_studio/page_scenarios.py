"""Scenarios in the page: what a user does and sees."""

from typing import List, Sequence, Tuple

import numpy as np
import pictures
from api import CONFIG, LABELS, PROMPT, SHAPES, SMART_CONFIG, Api, prompt_context, shapes_config
from browser import Browser
from regions import (
    Box,
    bitmask_of,
    by_label,
    check_prediction,
    check_regions,
    drawn,
    iou,
    mask_box,
    mask_of,
    pairs,
    rectangle_box,
    summary,
    vertices_box,
)
from studio import World, ensure, until

# the position of the red circle, in shares of the picture
CIRCLE_BOX = (0.645, 0.590, 0.935, 0.975)
CIRCLE_CENTRE = (0.79, 0.78)


def page_of(world: World) -> Browser:
    """The page of the user; the first call starts the browser and logs in."""
    if world.browser is None:
        world.browser = Browser(world.studio.url, world.out / "screenshots")
    return world.browser


def described(regions: Sequence[dict]) -> List[Tuple[str, str]]:
    """Type and label of the regions in the page's store. Each must have one label, and a mask if it is a brush region."""
    for region in regions:
        ensure(region["type"] != "brushlabels" or region["hasMask"], f"a brush region without a mask: {region}")
        ensure(len(region["labels"]) == 1, f"a region must have one label, not {region['labels']}")
    return sorted((region["type"], region["labels"][0]) for region in regions)


def changed(before: np.ndarray, after: np.ndarray, box: Tuple[float, ...]) -> float:
    """The share of pixels that differ between two screenshots inside a box, which is in shares of the picture."""
    ensure(before.shape == after.shape, f"the picture's size changed: {before.shape} and {after.shape}")
    height, width, _ = before.shape
    x0, x1 = int(box[0] * width), int(box[2] * width)
    y0, y1 = int(box[1] * height), int(box[3] * height)
    return float((np.abs(after - before).max(axis=2) > 12)[y0:y1, x0:x1].mean())


def check_drawn(what: str, before: np.ndarray, after: np.ndarray, rectangles: dict) -> None:
    """Checks that the picture changed where the regions are, and not far from them."""
    for label, region in rectangles.items():
        value = region["value"]
        x, y = value["x"] / 100, value["y"] / 100
        share = changed(before, after, (x, y, x + value["width"] / 100, y + value["height"] / 100))
        ensure(share > 0.5, f"{what}: only {share:.0%} of the pixels changed in the rectangle of {label}")
    share = changed(before, after, (0, 0, 0.9, 0.5))
    ensure(share < 0.02, f"{what}: {share:.0%} of the pixels changed where there are no regions")


def check_export(what: str, api: Api, project: int, boxes: Sequence[Box]) -> None:
    """Checks that each box, in pixels, is in the export to COCO, if Label Studio exports the project to COCO.

    Label Studio 1.23.2 exports rectangles, masks as RLE and polygons, but neither bitmasks nor vectors.
    """
    formats = api.export_formats(project)
    ensure("JSON" in formats, f"{what}: the formats of the export are {formats}")
    if "COCO" not in formats:
        return
    exported = [entry["bbox"] for entry in api.export_coco(project)["annotations"]]
    for box in boxes:
        overlaps = [iou(box, (x, y, x + width, y + height)) for x, y, width, height in exported]
        ensure(max(overlaps, default=0) > 0.95, f"{what}: {box} is not in the export to COCO: {exported}")


def connect(world: World) -> None:
    """A backend can be connected, and its test request shows regions."""
    api = world.api
    project = api.project("connect")
    api.upload(project, SHAPES)
    connected = api.connect(project, world.legacy)
    ensure(connected["is_interactive"], f"not interactive: {connected}")
    check_regions("test request", drawn(api.test_request(connected["id"])))


def browser(world: World) -> None:
    """A typed prompt gives suggestions, which can be accepted, submitted and updated without a loss."""
    api, page = world.api, page_of(world)
    project = api.project("typed prompt")
    [task] = api.upload(project, SHAPES)
    api.connect(project, world.legacy)

    page.open_task(project, task)
    page.enable_auto_annotation()
    page.settle()
    before = page.picture()
    page.screenshot("browser-1-open")
    answer = page.type_prompt(PROMPT)
    page.screenshot("browser-2-suggestions")
    check_regions("typed prompt", answer["result"])
    ensure([context["result"][0]["value"] for context in page.contexts] == [{"text": [PROMPT]}], str(page.contexts))
    store = page.store()
    ensure(described(store["suggestions"]) == pairs(), f"suggestions in the page: {store['suggestions']}")
    ensure(store["regions"] == [], f"regions in the page before they are accepted: {store['regions']}")
    ensure(page.suggestion_count() == "4 suggestions", f"the bottom bar says {page.suggestion_count()!r}")
    rectangles = by_label(answer["result"], "rectanglelabels")
    check_drawn("suggestions", before, page.picture(), rectangles)

    page.accept_all()
    page.screenshot("browser-3-accepted")
    store = page.store()
    ensure(described(store["regions"]) == pairs(), f"regions in the page after accepting: {store['regions']}")
    lines = page.outliner()
    ensure(len(lines) == 4 and all(any(label in line for label in LABELS) for line in lines), f"region list: {lines}")
    if not page.is_older():
        check_drawn("accepted regions", before, page.picture(), rectangles)

    page.save("submit")
    check_drawn("submitted regions", before, page.picture(), rectangles)
    page.screenshot("browser-4-submitted")
    [annotation] = api.annotations(task)
    ensure(summary(annotation["result"]) == sorted([("textarea",), *pairs()]), f"saved: {annotation['result']}"[:600])
    check_regions("saved annotation", drawn(annotation["result"]))
    scores = {region["id"]: region["score"] for region in answer["result"]}
    for region in drawn(annotation["result"]):
        ensure(abs(region["score"] - scores[region["id"]]) < 1e-6, f"the saved region {region['id']} has another score")
    check_prediction("saved annotation", {"result": drawn(annotation["result"])}, CONFIG)
    rectangles = by_label(annotation["result"], "rectanglelabels").values()
    check_export("rectangles and masks", api, project, [rectangle_box(region) for region in rectangles])
    # the page has sent a context without regions; the response must not change anything
    store = page.store()
    ensure(store["suggestions"] == [] and described(store["regions"]) == pairs(), f"in the page after Submit: {store}")

    # changes a label and changes it back, because Update is enabled only after a change
    rectangles = [region for region in annotation["result"] if region["type"] == "rectanglelabels"]
    [label] = rectangles[-1]["value"]["rectanglelabels"]
    [other] = set(LABELS) - {label}
    page.relabel_rectangle((other, label))
    page.save("update")
    page.screenshot("browser-5-updated")
    [updated] = api.annotations(task)
    ensure(updated["id"] == annotation["id"], "Update created another annotation")
    ids = [sorted(region["id"] for region in version["result"]) for version in (annotation, updated)]
    ensure(ids[0] == ids[1] and len(set(ids[1])) == 5, f"regions before and after Update: {ids}")
    check_regions("updated annotation", drawn(updated["result"]))
    ensure(api.predictions(task) == [], "typing a prompt stored predictions")
    page.check_errors("typed prompt")


# control tags that take masks and outlines besides brush and polygon: own labels, then separate labels
MASK_TAGS = {
    "own": (
        '<BitmaskLabels name="bitmask" toName="image">{labels}</BitmaskLabels>',
        '<VectorLabels name="vector" toName="image" closable="true">{labels}</VectorLabels>',
    ),
    "separate": (
        '<Labels name="labels" toName="image">{labels}</Labels>',
        '<Bitmask name="bitmask" toName="image"/>',
        '<Vector name="vector" toName="image" closable="true"/>',
    ),
}


def masks(world: World) -> None:
    """Bitmasks and vectors are drawn where the objects are, can be accepted and submitted, and are saved as they were."""
    api, page = world.api, page_of(world)
    for kind, tags in MASK_TAGS.items():
        config = shapes_config(*tags)
        project = api.project(f"masks with {kind} labels", config)
        [task] = api.upload(project, SHAPES)
        api.connect(project, world.legacy)
        page.open_task(project, task)
        page.enable_auto_annotation()
        page.settle()
        before = page.picture()
        answer = page.type_prompt(PROMPT)
        page.screenshot(f"masks-{kind}-1-suggestions")
        ending = "labels" if kind == "own" else ""
        shapes = {name: [r for r in answer["result"] if r["type"] == f"{name}{ending}"] for name in ("bitmask", "vector")}
        ensure(all(len(found) == 2 for found in shapes.values()), f"{kind}: {summary(answer['result'])}")
        boxes = [mask_box(bitmask_of(region)) for region in shapes["bitmask"]]
        for box, region in zip(boxes, shapes["vector"]):
            overlap = iou(box, vertices_box(region))
            ensure(overlap > 0.9, f"{kind}: the IoU of a bitmask and its vector is only {overlap:.2f}")
        after = page.picture()
        for x0, y0, x1, y1 in boxes:
            share = changed(before, after, (x0 / 640, y0 / 480, x1 / 640, y1 / 480))
            ensure(share > 0.4, f"{kind}: only {share:.0%} of the pixels changed where an object is")
        ensure(changed(before, after, (0, 0, 0.9, 0.5)) < 0.02, f"{kind}: pixels changed where there are no objects")

        page.accept_all()
        page.screenshot(f"masks-{kind}-2-accepted")
        page.save("submit")
        page.screenshot(f"masks-{kind}-3-submitted")
        [annotation] = api.annotations(task)
        saved = {region["id"] + region["type"]: region["value"] for region in drawn(annotation["result"])}
        for region in answer["result"]:
            key = region["id"] + region["type"]
            ensure(key in saved, f"{kind}: {region['type']} was not saved; saved: {summary(drawn(annotation['result']))}")
            if "imageDataURL" in region["value"]:
                same = (bitmask_of({**region, "value": saved[key]}) == bitmask_of(region)).all()
                ensure(same, f"{kind}: a saved bitmask differs")
        check_export(f"masks with {kind} labels", api, project, boxes)
        page.open_task(project, task)
        page.wait_for_regions()
        page.screenshot(f"masks-{kind}-4-opened-again")
        page.check_errors(f"masks with {kind} labels")


def exif(world: World) -> None:
    """The regions of a JPEG with an EXIF orientation are those of the upright picture."""
    api, page = world.api, page_of(world)
    project = api.project("EXIF orientation")
    plain, rotated = api.upload(project, SHAPES, pictures.rotated(world.out / "pictures/rotated.jpg"))
    connected = api.connect(project, world.legacy)
    expected = by_label(api.suggest(connected["id"], plain, prompt_context(PROMPT)), "rectanglelabels")

    page.open_task(project, rotated)
    page.enable_auto_annotation()
    before = page.picture()
    answer = page.type_prompt(PROMPT)
    page.screenshot("exif-suggestions")
    check_regions("EXIF", answer["result"], size=page.natural_size())
    ensure(page.natural_size() == (640, 480), f"the browser did not apply the orientation: {page.natural_size()}")
    ensure(
        described(page.store()["suggestions"]) == pairs(), "EXIF: the suggestions in the page differ from the response"
    )
    found = by_label(answer["result"], "rectanglelabels")
    check_drawn("EXIF", before, page.picture(), found)
    for label in LABELS:
        for key in ("x", "y", "width", "height"):
            values = expected[label]["value"][key], found[label]["value"][key]
            ensure(
                abs(values[0] - values[1]) < 1.5,
                f"EXIF: {key} of {label}: {values[0]} upright, {values[1]} with an orientation",
            )
    page.check_errors("EXIF")


def smart(world: World) -> None:
    """A smart keypoint and a smart rectangle give one mask with the label of the tool."""
    api, page = world.api, page_of(world)
    project = api.project("smart tools", SMART_CONFIG)
    task, other = api.upload(project, SHAPES, SHAPES)
    ml = api.connect(project, world.legacy)["id"]
    x, y = (100 * share for share in CIRCLE_CENTRE)
    point = {"x": x, "y": y, "width": 0.23, "labels": ["Red Circle"], "keypointlabels": ["Red Circle"]}
    left, top, right, bottom = (100 * share for share in CIRCLE_BOX)
    box = {"x": left, "y": top, "width": right - left, "height": bottom - top, "rotation": 0}
    common = {"original_width": 640, "original_height": 480, "image_rotation": 0, "to_name": "image"}
    keypoint = {"value": point, "is_positive": True, "id": "cxvSijQTlr", "from_name": "point", "type": "keypointlabels"}
    rectangle = {"value": box | {"rectanglelabels": ["Red Circle"]}, "id": "5nWIeItrpA", "from_name": "label"}
    for region in (keypoint, rectangle | {"type": "rectanglelabels"}):
        check_smart(api.suggest(ml, task, {"result": [common | region | {"origin": "manual"}]}), region["type"])

    page.open_task(project, other)
    page.enable_auto_annotation()
    answer = page.smart_rectangle("Red Circle", CIRCLE_BOX)
    page.screenshot("smart-1-rectangle")
    check_smart(answer["result"], "smart rectangle in the page")
    ensure(described(page.store()["suggestions"]) == [("brushlabels", "Red Circle")], f"suggestions: {page.store()}")
    page.accept_all()
    page.screenshot("smart-2-accepted")
    # the page removes the drawn rectangle
    ensure(described(page.store()["regions"]) == [("brushlabels", "Red Circle")], f"accepted: {page.store()}")
    page.check_errors("smart rectangle")


def check_smart(regions: list, what: str) -> None:
    """Checks that the regions are one mask of the red circle, with its label."""
    ensure(summary(regions) == [("brushlabels", "Red Circle")], f"{what}: {summary(regions)}")
    ensure(regions[0]["from_name"] == "label2", f"{what}: a brush region of {regions[0]['from_name']}")
    check_prediction(what, {"result": regions}, SMART_CONFIG)
    mask = mask_of(regions[0])
    x, y = int(CIRCLE_CENTRE[0] * mask.shape[1]), int(CIRCLE_CENTRE[1] * mask.shape[0])
    ensure(mask[y, x], f"{what}: the mask does not contain the centre of the circle")
    width, height = mask.shape[::-1]
    box = (CIRCLE_BOX[0] * width, CIRCLE_BOX[1] * height, CIRCLE_BOX[2] * width, CIRCLE_BOX[3] * height)
    overlap = iou(box, mask_box(mask))
    ensure(overlap > 0.5, f"{what}: the IoU of mask and circle is only {overlap:.2f}")


def memory(world: World) -> None:
    """With the default settings of Label Studio, a prompt typed for one task pre-annotates the next opened task."""
    api, page = world.api, page_of(world)
    project = api.project("prompt memory", preannotate=None)
    settings = api.get(f"/api/projects/{project}")
    ensure(settings["show_collab_predictions"], "by default, opening a task does not retrieve predictions")
    first, second = api.upload(project, *pictures.varied(world.out / "pictures/memory", 2))
    api.connect(project, world.legacy)

    page.open_task(project, first)
    page.enable_auto_annotation()
    answer = page.type_prompt("red circle.")
    page.screenshot("memory-1-typed")
    ensure(summary(answer["result"]) == pairs(LABELS[:1]), f"typed: {summary(answer['result'])}")

    ensure(api.predictions(second) == [], "the second task has predictions before it is opened")
    page.open_task(project, second)
    predictions = until("a prediction for the opened task", lambda: api.predictions(second))
    page.wait_for_regions()
    page.screenshot("memory-2-next-task")
    # the page may request the task twice at the same time; then Label Studio stores the same prediction twice
    results = [drawn(prediction["result"]) for prediction in predictions]
    for result in results:
        ensure(summary(result) == pairs(LABELS[:1]), f"next task: {summary(result)}, not the typed prompt's regions")
        check_regions("next task", result, LABELS[:1], page.natural_size())
        check_prediction("next task", {"result": result}, CONFIG)
    store = page.store()
    ensure(described(store["regions"]) == pairs(LABELS[:1]), f"next task in the page: {store}")
    both = (answer["result"], results[0])
    boxes = [rectangle_box(by_label(result, "rectanglelabels")[LABELS[0]]) for result in both]
    ensure(iou(*boxes) < 0.9, "next task: the regions are at the positions of the first task")
    page.check_errors("prompt memory")
