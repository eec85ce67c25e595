"""Draws the results of a simulation as SVG: the time of requests, and the memory of the server."""

import math
from html import escape

WIDTH, PANEL, LEFT, RIGHT, GAP = 900, 210, 64, 190, 66
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#333333", "#56b4e9")


def line(points: list[tuple[float, float]], colour: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='1.6'/>"


def text(x: float, y: float, words: str, anchor: str = "start", colour: str = "#333333") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{colour}'>{escape(words)}</text>"


def grid(top: float, ticks: list[tuple[float, str]]) -> list[str]:
    """The axes of a panel, with a line and a label per tick."""
    parts = []
    for y, label in ticks:
        parts.append(f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}' stroke='#dddddd'/>")
        parts.append(text(LEFT - 8, y + 4, label, "end"))
    parts.append(f"<line x1='{LEFT}' x2='{LEFT}' y1='{top}' y2='{top + PANEL}' stroke='#999999'/>")
    return parts


def latencies(times: dict[str, list[float]], top: float) -> list[str]:
    """The panel of times by percentile, with logarithmic axes that show the slowest hundredth best."""
    low, high = -3.0, 2.0
    shares = [i / 200 for i in range(180)] + [0.9 + i / 1000 for i in range(100)]
    stretch = math.log10(1 / (1 - 0.999))

    def x(share: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log10(1 / (1 - min(share, 0.999))) / stretch

    def y(seconds: float) -> float:
        return top + PANEL * (high - min(max(math.log10(max(seconds, 1e-9)), low), high)) / (high - low)

    labels = ["1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s"]
    parts = grid(top, [(y(10.0**i), label) for i, label in zip(range(-3, 3), labels)])
    for share, label in ((0, "fastest"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %")):
        parts.append(text(x(share), top + PANEL + 16, label, "start" if share == 0 else "middle"))
    for i, (kind, values) in enumerate(sorted(times.items())):
        ordered, colour = sorted(values), COLOURS[i % len(COLOURS)]
        points = [(x(s), y(ordered[min(len(ordered) - 1, int(s * len(ordered)))])) for s in shares]
        parts.append(line(points, colour))
        parts.append(text(WIDTH - RIGHT + 10, top + 12 + 18 * i, f"{kind} ({len(ordered)})", colour=colour))
    return parts


def memory(samples: list[tuple[float, float]], top: float) -> list[str]:
    """The panel of memory by time."""
    length = max(samples[-1][0], 1e-9)
    peak = max(mib for _, mib in samples)
    unit = 10 ** math.floor(math.log10(peak)) / 2
    high = unit * math.ceil(peak * 1.05 / unit)

    def y(mib: float) -> float:
        return top + PANEL * (1 - mib / high)

    count = round(high / unit)
    parts = grid(top, [(y(unit * i), f"{unit * i:g} MiB") for i in range(0, count + 1, max(1, count // 5))])
    points = [(LEFT + (WIDTH - LEFT - RIGHT) * seconds / length, y(mib)) for seconds, mib in samples]
    parts.append(line(points, COLOURS[0]))
    parts.append(text(LEFT, top + PANEL + 16, "0"))
    parts.append(text(WIDTH - RIGHT, top + PANEL + 16, f"{length / 60:.1f} min", "end"))
    return parts


def draw(times: dict[str, list[float]], samples: list[tuple[float, float]], length: str) -> str:
    """The SVG of both panels."""
    first = 58
    second = first + PANEL + GAP
    height = second + PANEL + 30
    title = f"Simulation of {length}: time of requests, and resident memory of the server"
    font = "font-family='system-ui, sans-serif'"
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' role='img' {font} font-size='12'>",
        f"<title>{escape(title)}</title><rect width='{WIDTH}' height='{height}' fill='#ffffff'/>",
        f"<text x='12' y='24' font-size='14' font-weight='bold'>{escape(title)}</text>",
        text(LEFT, first - 12, "share of requests, and the time within which they were answered"),
        *latencies(times, first),
        text(LEFT, second - 12, "resident memory"),
        *memory(samples, second),
    ]
    return "\n".join([*parts, "</svg>", ""])
