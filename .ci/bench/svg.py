"""The comparison as a drawing: a panel of bars for each of the main metrics."""

import statistics
from html import escape

from contestants import FLOOR, LOOP, OURS
from scenarios import METRICS

PANELS = {  # metric -> the panel's title and what the bars count
    "single": ("CPU per delivery", "µs, one event at a time to 1,000 clients"),
    "p99": (
        "Delivery time, 99th percentile",
        "ms, one event a second to 9,000 clients",
    ),
    "burst10": ("Bursts of 10", "million deliveries a second, 1,000 clients"),
    "burst100": ("Bursts of 100", "million deliveries a second, 1,000 clients"),
    "memory1000": ("Memory", "KiB per idle subscriber, 1,000 of them"),
    "arrivals": ("Arrivals", "s until 9,000 connections stream"),
    "bytes_sensor": ("Compression: JSON of a sensor", "bytes of an event on the wire"),
    "bytes_log": ("Compression: lines of a log", "bytes of an event on the wire"),
    "bytes_table": ("Compression: a table", "bytes of an event on the wire"),
    "coded_cpu": ("CPU, the sensor's events", "µs per delivery to 1,000 clients"),
    "coded_memory": ("Memory, server and proxy", "KiB for each of 1,000 clients"),
}
WIDTH, COLUMNS, MARGIN, GAP = 880, 2, 24, 32
TITLE_HEIGHT, PANEL_HEAD, BAR_STEP, BAR_HEIGHT = 64, 46, 22, 14
NAME_WIDTH, VALUE_WIDTH, FOOTER_LINE = 104, 54, 16
FOOTER_CHARACTERS = 128

STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #24292f }
.card { fill: #ffffff; stroke: #d0d7de }
.title { font-size: 18px; font-weight: 600 }
.panel { font-size: 14px; font-weight: 600 }
.quiet { fill: #57606a }
.small { font-size: 11px; fill: #57606a }
.name { text-anchor: end }
.ours { fill: #0969da; font-weight: 600 }
.reference { fill: #6e7781 }
.peer { fill: #b6bec8 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .card { fill: #0d1117; stroke: #30363d }
  .quiet, .small { fill: #9198a1 }
  .ours { fill: #58a6ff }
  .reference { fill: #8b949e }
  .peer { fill: #4b545f }
}
"""


def text(x, y, content, style=""):
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{style}">{escape(content)}</text>'


def number(value):
    """Three digits that count, and no more than needed."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def kind(name):
    if name.startswith(OURS):
        return "ours"
    return "reference" if name == FLOOR or name.startswith(LOOP) else "peer"


def panel(x, y, width, metric, figures):
    title, subtitle = PANELS[metric]
    better = "more" if METRICS[metric].more_is_better else "less"
    yield text(x, y + 14, title, "panel")
    yield text(x, y + 31, f"{subtitle}; {better} is better", "small")
    medians = {name: statistics.median(values) for name, values in figures.items()}
    scale = (width - NAME_WIDTH - VALUE_WIDTH) / max(medians.values())
    order = sorted(medians, key=medians.get, reverse=METRICS[metric].more_is_better)
    for row, name in enumerate(order):
        top = y + PANEL_HEAD + row * BAR_STEP
        left, length = x + NAME_WIDTH, max(1.0, medians[name] * scale)
        style = kind(name)
        label = "name ours" if style == "ours" else "name"
        yield text(left - 8, top + 11, name, label)
        yield (
            f'<rect class="{style}" x="{left}" y="{top}" width="{length:.1f}" '
            f'height="{BAR_HEIGHT}" rx="2"/>'
        )
        yield text(left + length + 6, top + 11, number(medians[name]))


def footer(setting):
    """The machine and the versions, broken into lines that fit."""
    lines = [""]
    for item in f"{setting['machine']}, Python {setting['python']}".split(", ") + (
        setting.get("peers", "").split(", ") + [setting["date"]]
    ):
        if item and len(lines[-1]) + len(item) > FOOTER_CHARACTERS:
            lines.append("")
        if item:
            lines[-1] += (" · " if lines[-1] else "") + item
    return lines


def draw(run, setting):
    """The SVG document; metrics that were not measured have no panel."""
    metrics = [name for name in PANELS if run.figures.get(name)]
    width = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
    rows = max((len(run.figures[name]) for name in metrics), default=0)
    height = PANEL_HEAD + rows * BAR_STEP + 20
    lines = footer(setting)
    bottom = TITLE_HEIGHT + -(-len(metrics) // COLUMNS) * height
    total = bottom + len(lines) * FOOTER_LINE + MARGIN
    size = f'width="{WIDTH}" height="{total}"'
    box = f'viewBox="0 0 {WIDTH} {total}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {box} role="img">',
        f"<title>sse_server beside other servers</title><style>{STYLE}</style>",
        f'<rect class="card" {size} rx="8"/>',
        text(MARGIN, 36, "One server process on one core, side by side", "title"),
    ]
    for index, name in enumerate(metrics):
        x = MARGIN + index % COLUMNS * (width + GAP)
        y = TITLE_HEIGHT + index // COLUMNS * height
        parts += panel(x, y, width, name, run.figures[name])
    for index, line in enumerate(lines):
        y = bottom + (index + 1) * FOOTER_LINE
        parts.append(text(MARGIN, y, line, "small"))
    return "\n".join([*parts, "</svg>"]) + "\n"
