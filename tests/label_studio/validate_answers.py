"""Validates responses of groundling's /predict with Label Studio's SDK and with the rules of its page.

    python tests/label_studio/validate_answers.py FOLDER

Each *.json in the folder is {"label_config": xml, "interactive": bool, "results": [...]}, with the results of a response.
Every entry that has a "result" is checked by LabelInterface.validate_prediction, by the same value models in pydantic's
strict mode, and by rules of the page that the SDK does not check. Needs label-studio-sdk 2.1.2 only.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Iterator, List, Tuple

from label_studio_sdk.converter.brush import InputStream, bytes2bit, decode_rle
from label_studio_sdk.label_interface import LabelInterface
from label_studio_sdk.label_interface.control_tags import ControlTag

GEOMETRIES = ("rectangle", "brush", "polygon", "ellipse", "keypoint")
EPSILON = 1e-6


def geometry_of(region: dict) -> str:
    """`rectangle` for the types `rectangle` and `rectanglelabels`, and so on; empty for other types."""
    kind = str(region.get("type")).removesuffix("labels")
    return kind if kind in GEOMETRIES else ""


def is_number(value: Any) -> bool:
    """Whether a value is a JSON number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def percent_problems(what: str, value: dict, keys: Tuple[str, ...]) -> Iterator[str]:
    """Finds numbers that are not percentages."""
    for key in keys:
        number = value.get(key)
        if not is_number(number) or not -EPSILON <= number <= 100 + EPSILON:
            yield f"{what}: {key} is {number!r}, not in 0..100"


def rectangle_problems(what: str, value: dict) -> Iterator[str]:
    """Finds a rectangle that is not inside the picture."""
    problems = list(percent_problems(what, value, ("x", "y", "width", "height")))
    yield from problems
    if problems:
        return
    for start, length in (("x", "width"), ("y", "height")):
        if value[start] + value[length] > 100 + EPSILON:
            yield f"{what}: {start} + {length} is {value[start] + value[length]}"
        if value[length] <= 0:
            yield f"{what}: {length} is {value[length]}"


def polygon_problems(what: str, value: dict) -> Iterator[str]:
    """Finds an invalid polygon."""
    points = value.get("points")
    if not isinstance(points, list) or len(points) < 3:
        yield f"{what}: a polygon needs 3 points, not {points!r}"
        return
    for point in points:
        if not (isinstance(point, list) and len(point) == 2):
            yield f"{what}: {point!r} is not a point"
            return
        yield from percent_problems(what, dict(zip("xy", point)), ("x", "y"))


def runs_of(rle: List[int]) -> Tuple[int, int, str]:
    """The number of values that an RLE declares, the number that its runs have, and the bits after the last run.

    decode_rle accepts a last run that is too long, but the page throws an exception.
    """
    stream = InputStream(bytes2bit(rle))
    count, word = stream.read(32), stream.read(5) + 1
    sizes = [stream.read(4) + 1 for _ in range(4)]
    total = 0
    while total < count:
        same = stream.read(1)
        length = stream.read(sizes[stream.read(2)]) + 1
        stream.i += word if same else word * length
        total += length
        if stream.i > len(stream.data):
            raise ValueError(f"the RLE ends after {total} of {count} values")
    return count, total, stream.data[stream.i :]


def brush_problems(what: str, region: dict) -> Iterator[str]:
    """Finds a mask that the page cannot draw."""
    value = region["value"]
    if value.get("format") != "rle":
        yield f"{what}: format is {value.get('format')!r}"
    expected = region["original_width"] * region["original_height"] * 4
    try:
        count, total, rest = runs_of(value["rle"])
        values = decode_rle(value["rle"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        yield f"{what}: invalid RLE: {type(error).__name__}: {error}"
        return
    if not count == total == len(values) == expected:
        yield f"{what}: the RLE declares {count} values and has {total}, not {expected}"
    if len(rest) > 15 or "1" in rest:
        yield f"{what}: {len(rest)} bits after the last run"
    if not set(values.tolist()) <= {0, 255}:
        yield f"{what}: mask values other than 0 and 255"
    elif not values.any():
        yield f"{what}: the mask is empty"


def region_problems(what: str, region: dict, control: ControlTag) -> Iterator[str]:
    """Finds problems of a single region."""
    score = region.get("score")
    if score is not None and not (is_number(score) and 0 <= score <= 1):
        yield f"{what}: invalid score {score!r}"
    if not (isinstance(region.get("id"), str) and region["id"]):
        yield f"{what}: invalid id {region.get('id')!r}"
    value = region["value"]
    labels = value.get(region["type"]) if region["type"].endswith("labels") else None
    if labels and len(labels) > 1 and control.attr.get("choice") != "multiple":
        yield f"{what}: {len(labels)} labels, but the control allows one"
    geometry = geometry_of(region)
    if not geometry:
        return
    size = [region.get("original_width"), region.get("original_height")]
    if not all(isinstance(side, int) and side > 0 for side in size) or region.get("image_rotation", 0) != 0:
        yield f"{what}: invalid picture size {size} or rotation {region.get('image_rotation')}"
        return
    if geometry == "rectangle":
        yield from rectangle_problems(what, value)
    elif geometry == "polygon":
        yield from polygon_problems(what, value)
    elif geometry == "brush":
        yield from brush_problems(what, region)
    try:
        getattr(control, "_value_class").model_validate_json(json.dumps(value), strict=True)
    except ValueError as error:
        yield f"{what}: {' '.join(str(error).split())[:300]}"


def id_problems(result: List[dict]) -> Iterator[str]:
    """Finds ids with which the page would merge unrelated regions."""
    groups = defaultdict(list)
    for region in result:
        groups[region.get("id")].append(region)
    for key, group in groups.items():
        names = [region.get("from_name") for region in group]
        if len(set(names)) != len(names):
            yield f"the id {key!r} occurs twice in one control: {sorted(names)}"
        geometries = [geometry_of(region) for region in group if geometry_of(region)]
        if len(geometries) > 1:
            yield f"the id {key!r} has several shapes, of which the page draws only one: {geometries}"


def labelled(region: dict, interface: LabelInterface) -> dict:
    """An unlabeled region with the first label, as if the annotator had chosen it; other regions unchanged."""
    kind, value = region.get("type"), region.get("value")
    if not geometry_of(region) or not str(kind).endswith("labels") or not isinstance(value, dict) or kind in value:
        return region
    control = interface.get_control(region.get("from_name"))
    return region | {"value": value | {kind: control.labels[:1]}}


def entry_problems(entry: dict, interface: LabelInterface, interactive: bool) -> List[str]:
    """All problems of the result of one task."""
    result = entry["result"]
    if not isinstance(result, list) or not all(isinstance(region, dict) for region in result):
        return ["the result is not a list of regions"]
    if interactive:
        try:
            result = [labelled(region, interface) for region in result]
        except Exception as error:  # the SDK raises plain Exceptions for unknown names
            return [str(error)]
    problems = interface.validate_prediction(entry | {"result": result}, return_errors=True)
    version = entry.get("model_version", "-")
    if not (isinstance(version, str) and version):
        problems.append(f"invalid model_version {version!r}")
    if problems:
        return problems
    for number, region in enumerate(result):
        what = f"region {number} ({region['type']})"
        problems.extend(region_problems(what, region, interface.get_control(region["from_name"])))
    problems.extend(id_problems(result))
    return problems


def no_constants(name: str) -> Any:
    """Rejects NaN and infinity, which are not valid JSON."""
    raise ValueError(f"{name} is not valid JSON")


def check_file(path: Path) -> Tuple[int, List[str], int]:
    """The number of valid entries, the problems of each invalid entry as a text, and the number without a result."""
    try:
        answer = json.loads(path.read_text(encoding="utf-8"), parse_constant=no_constants)
        interface = LabelInterface(answer["label_config"])
        interface.validate()
        interactive, results = bool(answer["interactive"]), answer["results"]
    except Exception as error:  # any error means that the file is invalid
        return 0, [f"{path.name}: {type(error).__name__}: {error}"], 0
    passed, failed, without = 0, [], 0
    for number, entry in enumerate(results):
        if "result" not in entry:
            without += 1
            continue
        problems = entry_problems(entry, interface, interactive)
        if problems:
            lines = "".join(f"\n    {problem[:400]}" for problem in problems[:10])
            failed.append(f"{path.name}, results[{number}]: {len(problems)} problems{lines}")
        else:
            passed += 1
    return passed, failed, without


def main() -> int:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    paths = sorted(Path(sys.argv[1]).glob("*.json"))
    if not paths:
        sys.exit(f"there is no *.json in {sys.argv[1]}")
    passed, failed, without = 0, 0, 0
    for path in paths:
        good, problems, bare = check_file(path)
        passed, failed, without = passed + good, failed + len(problems), without + bare
        for problem in problems:
            print(problem)
    print(f"{len(paths)} files; {without} entries without a result, which are not checked")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
