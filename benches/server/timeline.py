"""Draws the spans of a trace of `groundling serve --trace FILE`: one row per nesting depth, one colour per name.

    python3 benches/server/timeline.py TRACE OUT.svg TITLE [FROM TO]

FROM and TO are seconds since the start of the trace. The viewer at https://ui.perfetto.dev shows the same and more.
"""

import json
import sys
from html import escape
from pathlib import Path

WIDTH, ROW, LEFT, TOP = 900, 26, 12, 48
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")


def spans(text: str) -> list[dict]:
    """The events of a trace. Its JSON array has no closing bracket."""
    return [json.loads(line.rstrip(",")) for line in text.splitlines() if line.startswith("{")]


def depths(events: list[dict]) -> list[tuple[int, dict]]:
    """Each span with its depth: the number of spans of the same thread that contain it."""
    placed, stack = [], []
    for event in sorted(events, key=lambda event: (event["tid"], event["ts"], -event["dur"])):
        while stack and (stack[-1]["tid"] != event["tid"] or stack[-1]["ts"] + stack[-1]["dur"] <= event["ts"]):
            stack.pop()
        placed.append((len(stack), event))
        stack.append(event)
    return placed


def draw(events: list[dict], title: str) -> str:
    """The SVG."""
    placed = depths(events)
    start = min(event["ts"] for event in events)
    length = max(event["ts"] + event["dur"] for event in events) - start
    rows = 1 + max(depth for depth, _ in placed)
    height = TOP + rows * ROW + 40
    scale = (WIDTH - 2 * LEFT) / length
    names = list(dict.fromkeys(event["name"] for _, event in placed))
    font = "font-family='system-ui, sans-serif'"
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' role='img' {font} font-size='12'>",
        f"<title>{escape(title)}</title><rect width='{WIDTH}' height='{height}' fill='#ffffff'/>",
        f"<text x='{LEFT}' y='26' font-size='14' font-weight='bold'>{escape(title)}: {length / 1000:.0f} ms</text>",
    ]
    for depth, event in placed:
        x, width = LEFT + (event["ts"] - start) * scale, max(event["dur"] * scale, 0.6)
        colour = COLOURS[names.index(event["name"]) % len(COLOURS)]
        y = TOP + depth * ROW
        label = f"{event['name']} {event['dur'] / 1000:.1f} ms"
        parts.append(f"<rect x='{x:.1f}' y='{y}' width='{width:.1f}' height='{ROW - 3}' fill='{colour}'><title>{label}</title></rect>")
        if width > 7 * len(label):
            parts.append(f"<text x='{x + 5:.1f}' y='{y + 16}' fill='#ffffff'>{label}</text>")
        elif width > 7 * len(event["name"]):
            parts.append(f"<text x='{x + 5:.1f}' y='{y + 16}' fill='#ffffff'>{event['name']}</text>")
    parts.append(f"<text x='{LEFT}' y='{height - 14}' fill='#555555'>0</text>")
    parts.append(f"<text x='{WIDTH - LEFT}' y='{height - 14}' text-anchor='end' fill='#555555'>{length / 1000:.0f} ms</text>")
    return "\n".join([*parts, "</svg>", ""])


def main():
    trace, out, title, *between = sys.argv[1:]
    low, high = (1e6 * float(second) for second in between) if between else (0, float("inf"))
    events = [event for event in spans(Path(trace).read_text()) if low <= event["ts"] <= high]
    Path(out).write_text(draw(events, title))


if __name__ == "__main__":
    main()
