"""Computes medians and ratios from samples, and writes the table."""

from statistics import median

TITLES = {"onnxruntime": "ONNX Runtime", "torch": "torch", "candle": "candle-transformers", "groundling": "groundling"}
# the engines that groundling is compared with
RIVALS = ("onnxruntime", "torch")


def summary(samples: list[float]) -> dict:
    """The median, the range and the samples."""
    return {"median": median(samples), "min": min(samples), "max": max(samples), "samples": samples}


def ratios(engines: dict[str, dict]) -> dict[str, float]:
    """groundling's median divided by those of the others: below 1, groundling needs less."""
    own = engines.get("groundling")
    if own is None:
        return {}
    return {rival: own["median"] / engines[rival]["median"] for rival in RIVALS if rival in engines}


def more_boxes(items: list[dict]) -> dict | None:
    """The time of nineteen more boxes: the difference of two medians, which has no range."""
    by_name = {item["name"]: item["engines"] for item in items}
    one, many = by_name.get("masks-1", {}), by_name.get("masks-20", {})
    both = [engine for engine in one if engine in many]
    if not both:
        return None
    engines = {engine: {"median": many[engine]["median"] - one[engine]["median"]} for engine in both}
    title = "19 more boxes (the difference of the two above)"
    return {"name": "masks-extra", "title": title, "unit": "s", "engines": engines, "ratios": ratios(engines)}


def table(document: dict) -> str:
    """The results as a Markdown table."""
    shown = [name for name in TITLES if any(name in item["engines"] for item in document["items"])]
    header = ["", *(TITLES[name] for name in shown), *(f"groundling / {TITLES[rival]}" for rival in RIVALS)]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for item in document["items"]:
        numbers = [number(item["engines"].get(name), item["unit"]) for name in shown]
        shares = [f"{item['ratios'][rival]:.2f}" if rival in item["ratios"] else "-" for rival in RIVALS]
        rows.append([item["title"], *numbers, *shares])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def number(result: dict | None, unit: str) -> str:
    """A median and its range."""
    if result is None:
        return "-"
    digits = 0 if unit == "MiB" else 3 if result["median"] < 1 else 2
    text = f"{result['median']:.{digits}f} {unit}"
    if "min" in result:
        text += f" ({result['min']:.{digits}f} to {result['max']:.{digits}f})"
    return text


def machine(document: dict) -> str:
    """The text above the table."""
    cpu, settings = document["machine"], document["settings"]
    family = f" ({cpu['family']})" if cpu["family"] else ""
    sets = ", ".join(cpu["instruction_sets"]) or "no vector units known"
    peak = f"{cpu['peak_f32_gflops'] or 0:.0f} GFLOP/s"
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines = [
        f"{cpu['model']}{family}, {cpu['cores']} cores, {sets}; f32 peak of {settings['threads']} threads: {peak}. "
        f"groundling's kernels use {cpu['kernels']}.",
        f"{versions}; commit {document['commit']}.",
        f"{settings['threads']} threads; medians of {settings['repeat']} processes with {settings['runs']} timed runs "
        "each (one for memory and start), in brackets the smallest and the largest.",
    ]
    return "\n".join(lines)
