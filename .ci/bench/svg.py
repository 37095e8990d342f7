"""The comparison as a drawing: a panel of bars for each of the main metrics."""

import statistics
from html import escape

from contestants import FLOOR, LOOP, OURS
from scenarios import METRICS

PANELS = {  # metric -> the panel's title and what the bars count
    "single": ("CPU per delivery", "µs, one event at a time to 1,000 clients"),
    "p99": ("Delivery time, 99 % of all", "ms, one event a second to 9,000 clients"),
    "burst10": ("Bursts of 10", "million deliveries a second, 1,000 clients"),
    "burst100": ("Bursts of 100", "million deliveries a second, 1,000 clients"),
    "memory1000": ("Memory", "KiB per idle subscriber, 1,000 of them"),
    "arrivals": ("Arrivals", "s until 9,000 connections stream"),
}
WIDTH, COLUMNS, MARGIN, PANEL_WIDTH = 880, 2, 24, 432
TITLE_HEIGHT, PANEL_HEAD, BAR_STEP, FOOTER_LINE = 64, 46, 22, 16
NAME_WIDTH, BAR_WIDTH = 104, 242
FOOTER_CHARACTERS = 128

STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #24292f }
.card { fill: #ffffff; stroke: #d0d7de } .title { font-size: 18px; font-weight: 600 }
.panel { font-size: 14px; font-weight: 600 } .small { font-size: 11px; fill: #57606a }
.name { text-anchor: end } .ours { fill: #0969da; font-weight: 600 }
.reference { fill: #6e7781 } .peer { fill: #b6bec8 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .card { fill: #0d1117; stroke: #30363d }
  .small { fill: #9198a1 } .ours { fill: #58a6ff }
  .reference { fill: #8b949e } .peer { fill: #4b545f }
}
"""


def text(x, y, content, style=""):
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{style}">{escape(content)}</text>'


def number(value):
    """Three digits that count, and no more than needed."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.{1 if value >= 10 else 2}f}"


def kind(name):
    if name.startswith(OURS):
        return "ours"
    return "reference" if name == FLOOR or name.startswith(LOOP) else "peer"


def panel(x, y, metric, figures):
    title, subtitle = PANELS[metric]
    more = METRICS[metric].more_is_better
    yield text(x, y + 14, title, "panel")
    better = "more" if more else "less"
    yield text(x, y + 31, f"{subtitle}; {better} is better", "small")
    medians = {name: statistics.median(values) for name, values in figures.items()}
    left, top = x + NAME_WIDTH, y + PANEL_HEAD
    for name in sorted(medians, key=medians.get, reverse=more):
        length = max(1.0, medians[name] * BAR_WIDTH / max(medians.values()))
        style = kind(name)
        yield text(left - 8, top + 11, name, "name ours" if style == "ours" else "name")
        yield f'<rect class="{style}" x="{left}" y="{top}" width="{length:.1f}" '
        yield 'height="14" rx="2"/>'
        yield text(left + length + 6, top + 11, number(medians[name]))
        top += BAR_STEP


def footer(setting):
    """The machine and the versions, broken into lines that fit."""
    items = setting["machine"].split(", ") + [f"Python {setting['python']}"]
    items += filter(None, setting.get("peers", "").split(", "))
    lines = [items[0]]
    for item in [*items[1:], setting["date"]]:
        if len(lines[-1]) + len(item) > FOOTER_CHARACTERS:
            lines.append(item)
        else:
            lines[-1] += f" · {item}"
    return lines


def draw(run, setting):
    """The SVG document, a panel in each line; what was not measured has none."""
    metrics = [name for name in PANELS if run.figures.get(name)]
    rows = max((len(run.figures[name]) for name in metrics), default=0)
    height = PANEL_HEAD + rows * BAR_STEP + 20
    lines = footer(setting)
    bottom = TITLE_HEIGHT + -(-len(metrics) // COLUMNS) * height
    total = bottom + len(lines) * FOOTER_LINE + MARGIN
    size = f'width="{WIDTH}" height="{total}"'
    begin = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"'
    parts = [
        f'{begin} viewBox="0 0 {WIDTH} {total}">',
        f"<title>sse_server beside other servers</title><style>{STYLE}</style>",
        f'<rect class="card" {size} rx="8"/>',
        text(MARGIN, 36, "One server process on one core, side by side", "title"),
    ]
    for index, name in enumerate(metrics):
        x = MARGIN + index % COLUMNS * PANEL_WIDTH
        y = TITLE_HEIGHT + index // COLUMNS * height
        parts.append("".join(panel(x, y, name, run.figures[name])))
    for index, line in enumerate(lines, 1):
        parts.append(text(MARGIN, bottom + index * FOOTER_LINE, line, "small"))
    return "\n".join([*parts, "</svg>"]) + "\n"
