"""Writes the generated parts of docs/performance.md: tables and plots of the measurements."""

import re

import report
from plot import line_chart

MARKERS = re.compile(r"(<!-- begin (?P<name>[a-z0-9-]+) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL)
TOTAL = "all"
# names in the plots of the detector -> the stages whose times are added
DETECTOR = {
    "image backbone": ["detector.encode_image"],
    "text": ["detector.text"],
    "encoder": ["detector.encoder"],
    "queries and decoder": ["detector.query_selection", "detector.decoder"],
}
SEGMENTER = {"mask decoder": ["segmenter.masks"], "masks to image size": ["segmenter.post_process"]}
BOTH = {
    "detector": ["detector.encode_image", "detector.text", "detector.encoder", "detector.query_selection",
                 "detector.decoder"],
    "image encoder": ["segmenter.encode_image"],
    "masks": ["segmenter.masks", "segmenter.post_process"],
}  # fmt: skip


def fill(
    template: str, document: dict | None, others: dict | None, families: dict | None = None
) -> tuple[str, dict[str, str]]:
    """The text in which the measured parts are replaced, and the plots of these parts by name."""
    plots: dict[str, str] = {}
    texts = {}
    if document:
        texts |= {
            "machine": machine(document),
            "size": size(document["size"], plots),
            "phrases": phrases(document["phrases"], plots),
            "boxes": boxes(document["boxes"], plots),
            "cores": cores(document["cores"], plots),
            "models": models(document),
        }
    if others:
        # the ratios depend on the best instruction set of the machine, so each one has its own table
        kernels = others["machine"]["kernels"].removesuffix("_bf16")
        texts[f"comparison-{kernels}"] = comparison(others)
    if families:
        texts["families"] = comparison(families)

    def replace(match: re.Match) -> str:
        text = texts.get(match["name"])
        return match[0] if text is None else f"{match[1]}{text}\n{match[3]}"

    return MARKERS.sub(replace, template), plots


def comparison(document: dict) -> str:
    """The results of compare.py, with the machine of the measurement."""
    return f"{report.machine(document)}\n\n{report.table(document)}"


def machine(document: dict) -> str:
    """The machine and the settings of the measurement."""
    cpu, settings, versions = document["machine"], document["settings"], document["versions"]
    points = [*document["size"], *document["phrases"]]
    peak = max(point["peak_f32_gflops"] or 0 for point in points)
    sets = ", ".join(cpu["instruction_sets"]) or "no vector units known"
    return (
        f"{cpu['model']}, {cpu['cores']} cores, {sets}; "
        f"f32 peak of {settings['threads']} threads: {peak:.0f} GFLOP/s. "
        f"groundling {versions['groundling']}, commit {document['commit']}; {settings['threads']} threads "
        f"unless stated otherwise, medians of {settings['repeat']} repetitions."
    )


def size(points: list[dict], plots: dict[str, str]) -> str:
    """The detector with images of increasing size."""
    axis = "short side of the detector's input, pixels (images of 3:4)"
    plots["size"] = line_chart("Detector: time and image size", axis, "seconds", series(points, DETECTOR))
    memory = {"peak memory": [(point["x"], point["memory_mib"]) for point in points if point["memory_mib"]]}
    shown = ["size"]
    if memory["peak memory"]:
        plots["memory"] = line_chart("Detector: memory and image size", axis, "MiB", memory)
        shown.append("memory")
    header = ["input", *DETECTOR, TOTAL, "peak memory"]
    rows = [[f"{p['input'][0]}x{p['input'][1]}", *seconds(p, DETECTOR), mebibytes(p)] for p in points]
    return "\n\n".join([*map(image, shown), table(header, rows)])


def phrases(points: list[dict], plots: dict[str, str]) -> str:
    """The detector with prompts of increasing length."""
    lines = series(points, DETECTOR)
    plots["phrases"] = line_chart("Detector: time and number of phrases", "phrases of one word", "seconds", lines)
    header = ["phrases", "tokens", *DETECTOR, TOTAL]
    rows = [[str(p["x"]), " + ".join(map(str, p["tokens"])), *seconds(p, DETECTOR)] for p in points]
    return f"{image('phrases')}\n\n{table(header, rows)}"


def boxes(points: list[dict], plots: dict[str, str]) -> str:
    """The segmenter with an increasing number of boxes, without its image encoder, which runs once."""
    lines = {name: [(p["x"], stages(p, names)) for p in points] for name, names in SEGMENTER.items()}
    plots["boxes"] = line_chart("Segmenter: time and number of boxes", "boxes on one image", "seconds", lines)
    header = ["boxes", *SEGMENTER, "image encoder", "peak memory"]
    encoder = ["segmenter.encode_image"]
    rows = []
    for p in points:
        parts = [second(stages(p, names)) for names in SEGMENTER.values()]
        rows.append([str(p["x"]), *parts, second(stages(p, encoder)), mebibytes(p)])
    return f"{image('boxes')}\n\n{table(header, rows)}"


def cores(points: list[dict], plots: dict[str, str]) -> str:
    """A whole prediction with an increasing number of threads."""
    plots["cores"] = line_chart("Prediction: time and threads", "threads", "seconds", series(points, BOTH))
    header = ["threads", *BOTH, TOTAL, "faster than one thread"]
    first = points[0]["total_s"]
    rows = [[str(p["x"]), *seconds(p, BOTH), f"{first / p['total_s']:.2f} x"] for p in points]
    return f"{image('cores')}\n\n{table(header, rows)}"


def models(document: dict) -> str:
    """One image through each model."""
    header = ["model", "work", "GFLOP", "time", "share of the peak", "loaded in", "peak memory"]
    rows = []
    for p in document["detectors"]:
        work = f"{p['input'][0]}x{p['input'][1]}, {p['tokens'][0]} tokens"
        rows.append([p["x"], work, *rate(p, [name for names in DETECTOR.values() for name in names]), *loaded(p)])
    for p in document["segmenters"]:
        rows.append([p["x"], "image encoder", *rate(p, ["segmenter.encode_image"]), *loaded(p)])
    return table(header, rows)


def rate(point: dict, names: list[str]) -> list[str]:
    """Operations, seconds, and the share of the processor's peak rate."""
    time = stages(point, names)
    gflop = sum(point["stages"][name]["gflop"] or 0 for name in names)
    peak = point["peak_f32_gflops"]
    share = f"{100 * gflop / time / peak:.0f} %" if peak else "-"
    return [f"{gflop:.0f}", second(time), share]


def loaded(point: dict) -> list[str]:
    """The time to load, and the peak memory."""
    return [second(point["load_s"]), mebibytes(point)]


def series(points: list[dict], groups: dict[str, list[str]]) -> dict[str, list[tuple[float, float]]]:
    """Lines of a plot: the total, and the groups of stages."""
    lines = {TOTAL: [(point["x"], point["total_s"]) for point in points]}
    return lines | {name: [(p["x"], stages(p, names)) for p in points] for name, names in groups.items()}


def stages(point: dict, names: list[str]) -> float:
    """The sum of the seconds of some stages."""
    return sum(point["stages"][name]["median_s"] for name in names)


def seconds(point: dict, groups: dict[str, list[str]]) -> list[str]:
    """Cells of a table: the groups of stages, and the total."""
    return [second(time) for time in (*(stages(point, names) for names in groups.values()), point["total_s"])]


def second(time: float) -> str:
    """A time with three significant digits."""
    return f"{time:.3f} s" if time < 1 else f"{time:.2f} s"


def mebibytes(point: dict) -> str:
    """Memory in MiB, or "-" if the system does not report it."""
    return f"{point['memory_mib']:.0f} MiB" if point["memory_mib"] else "-"


def image(name: str) -> str:
    """The Markdown of a plot."""
    return f"![{name}](performance/{name}.svg)"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with numbers aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)
