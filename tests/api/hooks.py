"""Data that schemathesis cannot generate from a schema: labeling configs, images of tasks, and regions of annotators."""

import base64
import json
import random
import struct
import zlib

import schemathesis
from hypothesis import strategies as st

SHAPES = """<View>
  <Image name="image" value="$image"/>
  <TextArea name="prompt" toName="image"/>
  {more}
  <RectangleLabels name="label" toName="image"><Label value="Red Circle"/><Label value="Blue Star"/></RectangleLabels>
  <BrushLabels name="label2" toName="image"><Label value="Red Circle"/><Label value="Blue Star"/></BrushLabels>
</View>"""
CONFIGS = [
    SHAPES.format(more=""),
    SHAPES.format(more='<Number name="box_threshold" toName="image" defaultValue="0.2"/>'),
    SHAPES.format(more='<PolygonLabels name="outline" toName="image"><Label value="Red Circle"/></PolygonLabels>'),
    '<View><Image name="image" value="$image"/><Labels name="l" toName="image"><Label value="Red Square"/></Labels>'
    '<Rectangle name="r" toName="image"/><Brush name="b" toName="image"/><Polygon name="p" toName="image"/></View>',
    # unusable configs
    '<View><Text name="text" value="$text"/></View>',
    "<View><Image",
    " ",
]


def png(width: int, height: int) -> bytes:
    """A PNG of a red circle on white."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def row(y: int) -> bytes:
        pixels = ((x - width / 2) ** 2 + (y - height / 2) ** 2 < min(width, height) ** 2 / 9 for x in range(width))
        return b"\0" + b"".join(b"\xe0\x20\x20" if red else b"\xff\xff\xff" for red in pixels)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(row(y) for y in range(height)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def data_uri(data: bytes) -> str:
    """An image as a data URI."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


# no request to these leaves the machine; host names in `.invalid` do not exist
UNUSUAL_IMAGES = [
    data_uri(b"not an image"),
    "data:image/png;base64,&&&",
    "/data/upload/1/shapes.png",
    "s3://bucket/shapes.png",
    "http://10.0.0.1/shapes.png",
    "https://images.invalid/shapes.png",
    "",
    7,
]
PROMPTS = ["red circle", "red circle. blue star", "red circle\nblue, star;", ".", " ", "\0", "r" * 9000, "ü \U0001f352"]
NUMBERS = [0, 1, 5, 50, 99.5, 100, 101, -3, 1e-30, 1e6, 1e38, -1e300]

schemathesis.openapi.format("labeling-config", st.sampled_from(CONFIGS))


def sometimes_unusual(source: random.Random, usual: object, unusual: list) -> object:
    """The usual value, or in a fifth of the cases an unusual one."""
    return source.choice(unusual) if source.random() < 0.2 else usual


def random_region(source: random.Random) -> dict:
    """A region of an annotator as the page sends it, sometimes with unusual values."""
    percent = {key: sometimes_unusual(source, source.randint(1, 60), NUMBERS) for key in ("x", "y", "width", "height")}
    kind = source.choice(["textarea", "textarea", "rectanglelabels", "keypointlabels", "number"])
    value = {
        "textarea": {"text": [source.choice(PROMPTS)]},
        "rectanglelabels": percent | {"rotation": sometimes_unusual(source, 0, NUMBERS), "rectanglelabels": ["Red Circle"]},
        "keypointlabels": percent | {"keypointlabels": ["Red Circle"], "labels": ["Red Circle"]},
        "number": {"number": sometimes_unusual(source, 0.3, NUMBERS)},
    }[kind]
    names = {"textarea": "prompt", "number": "box_threshold"}
    region = {"type": kind, "value": value, "id": str(source.random()), "to_name": sometimes_unusual(source, "image", ["", "other"])}
    region["from_name"] = sometimes_unusual(source, names.get(kind, "label"), ["", "other"])
    if kind == "keypointlabels":
        region["is_positive"] = source.random() < 0.7
    return sometimes_unusual(source, region, [region | {"image_rotation": 90}, {"type": kind, "value": {}}])


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict) -> None:
    """Adds a labeling config, tasks with images and mostly regions of an annotator to valid bodies of `/predict`. Few generated
    bodies reach the models without them. The random choices depend on the body only."""
    body = case.body
    is_positive = case.meta is not None and case.meta.generation.mode.is_positive
    if case.operation.path != "/predict" or not is_positive or not isinstance(body, dict):
        return
    source = random.Random(json.dumps(body, sort_keys=True, default=str))
    if source.random() < 0.1:
        return
    picture = data_uri(png(source.choice([1, 33, 240, 240]), source.choice([1, 71, 160, 160])))
    tasks = body.get("tasks") or [{"id": source.randint(1, 9)} for _ in range(source.choice([0, 1, 1, 1, 3]))]
    tasks = [task | {"data": {"image": sometimes_unusual(source, picture, UNUSUAL_IMAGES)}} for task in tasks]
    params = body.get("params") or {}
    if source.random() < 0.7:
        regions = [random_region(source) for _ in range(source.choice([0, 1, 1, 1, 2, 5, 70]))]
        params = params | {"context": {"result": regions}}
    config = sometimes_unusual(source, source.choice(CONFIGS[:3]), CONFIGS[3:])
    case.body = body | {"tasks": tasks, "params": params, "label_config": config}
