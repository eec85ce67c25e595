"""Writes line charts as SVG without a library: the files are small, and the same on every run."""

import math
from html import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 44, 52
# distinguishable with any colour vision (Okabe and Ito), and readable on white
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
FONT = "font-family='system-ui, sans-serif' font-size='13'"
LABEL_HEIGHT = 16

Points = list[tuple[float, float]]


def line_chart(title: str, x_label: str, y_label: str, series: dict[str, Points]) -> str:
    """One line per series, with its name at the right end; both axes start at 0."""
    right = max(x for points in series.values() for x, _ in points)
    top = max(y for points in series.values() for _, y in points)
    x_ticks, y_ticks = ticks(right), ticks(top)
    # the x axis ends at the last point, the y axis at a tick
    top = y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * x / right,
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / top,
        )

    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' role='img' {FONT}>",
        f"<title>{escape(title)}</title>",
        f"<rect width='{WIDTH}' height='{HEIGHT}' fill='#ffffff'/>",
        text(LEFT, 24, title, weight="bold"),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_label, anchor="middle"),
        text(LEFT, TOP - 6, y_label, colour="#555555"),
    ]
    for tick in y_ticks:
        x, y = place(0, tick)
        parts.append(line(x, y, WIDTH - RIGHT, y))
        parts.append(text(x - 8, y + 4, number(tick), anchor="end", colour="#555555"))
    for tick in (tick for tick in x_ticks if tick <= right):
        x, y = place(tick, 0)
        parts.append(line(x, y, x, y + 5))
        parts.append(text(x, y + 20, number(tick), anchor="middle", colour="#555555"))
    ends = {name: place(*points[-1]) for name, points in series.items()}
    heights = apart([y for _, y in ends.values()])
    for (name, points), colour, height in zip(series.items(), COLOURS, heights, strict=False):
        places = [place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        parts += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colour}'/>" for x, y in places]
        parts.append(text(ends[name][0] + 10, height + 4, name, colour=colour))
    return "\n".join([*parts, "</svg>", ""])


def ticks(largest: float) -> list[float]:
    """0 and multiples of a round step; the last one is at or above the largest value."""
    if largest <= 0:
        return [0.0, 1.0]
    magnitude = 10 ** math.floor(math.log10(largest / 5))
    step = next(step * magnitude for step in (1, 2, 5, 10) if step * magnitude * 6 >= largest)
    return [i * step for i in range(math.ceil(largest / step - 1e-9) + 1)]


def apart(heights: list[float]) -> list[float]:
    """Heights of labels, moved so that they do not overlap."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    moved = list(heights)
    for above, below in zip(order, order[1:], strict=False):
        moved[below] = max(moved[below], moved[above] + LABEL_HEIGHT)
    # labels below the lower edge are moved back up, and move those above them
    limit = HEIGHT - BOTTOM
    for i in reversed(order):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - LABEL_HEIGHT
    return moved


def number(value: float) -> str:
    """The text of a tick, without superfluous digits."""
    return f"{value:.10g}" if value < 1e6 else f"{value:.0f}"


def text(x: float, y: float, words: str, anchor: str = "start", weight: str = "normal", colour: str = "#222222") -> str:
    """A line of text."""
    style = f"text-anchor='{anchor}' font-weight='{weight}' fill='{colour}'"
    return f"<text x='{x:.1f}' y='{y:.1f}' {style}>{escape(words)}</text>"


def line(x0: float, y0: float, x1: float, y1: float) -> str:
    """A thin grid line."""
    return f"<line x1='{x0:.1f}' y1='{y0:.1f}' x2='{x1:.1f}' y2='{y1:.1f}' stroke='#dddddd'/>"
