#!/usr/bin/env python3
"""Compares Grafana's dashboards with docs/metrics.md and with a running Prometheus, and draws them.

dashboards_check.py lint | query PROMETHEUS_URL [--job-absent training] | draw PROMETHEUS_URL OUT.html [--minutes 15]
A target whose refId begins with "optional" may have no data: an event that never occurred, or an absent device.
"""

import argparse
import html
import json
import math
import re
import sys
import time
from pathlib import Path
from urllib import error, parse, request

ROOT = Path(__file__).resolve().parent.parent
WORDS = set("and or unless bool on ignoring by without group_left group_right offset inf nan".split())
BOARDS = {n: json.loads((ROOT / f"configs/grafana/dashboards/{n}.json").read_text()) for n in ("service", "model", "training")}
# Name and expression of each rule; `expr:` is a line, or a block of deeper lines.
RULE = re.compile(r"- (?:record|alert): (\S+)\n +expr: (?:\|\n)?((?: {10}.*\n)+|.+\n)")
RULES = RULE.findall("".join((ROOT / f"configs/prometheus/{name}.yml").read_text() for name in ("rules", "alerts")))


def queries():
    """(where, expression, is it instant, may it be empty, its dashboard) of every panel and annotation."""
    for board, content in BOARDS.items():
        for panel in content["panels"]:
            for t in panel.get("targets", []):
                yield f"{board}, {panel['title']}", t["expr"], t.get("instant"), t["refId"].startswith("optional"), board
        for a in (a for a in content["annotations"]["list"] if not a.get("builtIn")):
            yield f"{board}, annotation {a['name']}", a["expr"], False, True, board


def documented():
    """Names that an expression may use, and of them those that are there for compatibility alone."""
    names, kept = set(), set()
    for line in (ROOT / "docs/metrics.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        for name in re.findall(r"`(\w+)`", cells[1]) if len(cells) > 5 else ():
            names.update([name + end for end in ("_bucket", "_sum", "_count")] if cells[2] == "histogram" else [name])
            if cells[5].startswith("compatible"):
                kept.add(name)
    return names, kept - {"model_last_trained_timestamp", "data_version_timestamp"}


def series_names(expression):
    text = re.sub(r'"[^"]*"', "", expression)
    text = re.sub(r"\{[^}]*\}|\[[^]]*\]|\boffset\s+\S+", " ", text)
    text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)
    return set(re.findall(r"(?<![\w:.])([a-zA-Z_:][\w:]*)(?!\s*\(|[\w:])", text)) - WORDS


def lint():
    names, kept = documented()
    known = names | {"up", "ALERTS"} | {rule for rule, _ in RULES}
    faults = ["two dashboards have the same uid"] * (len({board["uid"] for board in BOARDS.values()}) < len(BOARDS))
    for name, board in BOARDS.items():
        ids, cells = [panel["id"] for panel in board["panels"]], {}
        faults += [f"{name}: two panels have the same id"] * (len(set(ids)) < len(ids))
        for panel in board["panels"]:
            where = f"{name}, {panel.get('title') or panel['id']}"
            wanted = ["title"] if panel["type"] == "row" else ["title", "description", "datasource", "targets", "unit"]
            has = panel | {"unit": panel.get("fieldConfig", {}).get("defaults", {}).get("unit")}
            faults += [f"{where}: has no {key}" for key in wanted if not has.get(key)]
            x, y, w, h = (panel["gridPos"][key] for key in "xywh")
            owners = {cells.setdefault((i, j), panel["id"]) for i in range(x, x + w) for j in range(y, y + h)}
            faults += [f"{where}: lies over another panel"] * (owners != {panel["id"]})
            faults += [f"{where}: does not fit 24 columns"] * (x < 0 or x + w > 24)
    for where, used in [(q[0], series_names(q[1])) for q in [*RULES, *queries()]]:
        faults += [f"{where}: {m} is not in docs/metrics.md" for m in sorted(used - known)]
        faults += [f"{where}: {m} is kept for compatibility; use its proper form" for m in sorted(used & kept)]
    return faults


def ask(args, expression, instant):
    for name, value in (("$__rate_interval", "1m"), ("$__range", "1h"), ("$instance", ".*"), ("$model", ".*")):
        expression = expression.replace(name, value)
    window = parse.urlencode({"query": expression, "start": args.end - args.span, "end": args.end, "step": args.step})
    try:
        with request.urlopen(f"{args.url}/api/v1/query{'' if instant else '_range'}?{window}", timeout=30) as reply:
            return json.load(reply)["data"]["result"]
    except error.HTTPError as refusal:
        raise ValueError(json.load(refusal)["error"]) from None


def query(args):
    faults, asked = [], [*queries(), *((f"rule {name}", expression, True, True, None) for name, expression in RULES)]
    for where, expression, instant, empty, board in asked:
        try:
            if not ask(args, expression, instant) and not empty and board not in args.job_absent:
                faults.append(f"{where}: no data: {expression}")
        except ValueError as fault:
            faults.append(f"{where}: {fault}: {expression}")
    return faults


WIDTH, ROW, LEFT = 1440, 34, 56
NAMED = {"green": "#2e8b57", "orange": "#d9822b", "red": "#c0392b", "blue": "#2f6fb5"}
COLOURS = "#2f6fb5 #d9822b #2e8b57 #b8336a #7d5ba6 #1b998b #8a6d3b #5b6770".split()
POWERS = [(1e9, " G"), (1e6, " M"), (1e3, " k"), (1, " ")]
TIMES = [(86400, " d"), (3600, " h"), (60, " min"), (1, " s"), (1e-3, " ms")]
ENDS = {"decbytes": "B", "Bps": "B/s", "reqps": "/s", "short": ""}
UNITS = {"s": TIMES, "percentunit": [(0.01, " %")]} | dict.fromkeys(ENDS, POWERS)


def shown(value, look):
    value, unit, decimals = float(value), look["unit"], look.get("decimals")
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞"
    scale = UNITS.get(unit, [(1, " ")])
    size, name = next((s for s in scale if abs(value) >= s[0]), scale[-1])
    value /= size
    short = f"{value:.2f}".rstrip("0").rstrip(".") if abs(value) >= 1 else f"{value:.2g}"
    number = short if decimals is None else f"{value:.{decimals}f}"
    return (number + name + ENDS.get(unit, unit.partition("suffix:")[2])).strip()


def label(x, y, words, size=11, fill="#333", anchor="start"):
    where = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"'
    return f"<text {where}>{html.escape(str(words))}</text>"


def box(x, y, w, h, fill, more=""):
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" fill="{fill}" {more}/>'


def values(look, found, w, h, bars):
    steps, top = look.get("thresholds", {}).get("steps", [{"color": "blue", "value": None}]), look.get("max", 1)
    for i, (name, series) in enumerate(sorted(found, key=lambda f: f[0]) if bars else found):
        value, each = float(series["value"][1]), (h - 46) / len(found)
        hue = NAMED[[s["color"] for s in steps if s["value"] is None or value >= s["value"]][-1]]
        if bars:
            y, full = 36 + i * each, w - 190
            yield label(112, y + each / 2, name, anchor="end") + label(w - 10, y + each / 2, shown(value, look), 12, anchor="end")
            yield box(120, y, full, each - 8, "#eee") + box(120, y, full * min(value / top, 1), each - 8, hue)
            yield from (box(120 + full * s["value"] / top, y - 4, 1.5, each, NAMED[s["color"]]) for s in steps[1:])
        else:
            x, y = w * (i + 0.5) / len(found), h / 2 + 20
            yield label(x, y, shown(value, look), 24, hue, "middle") + label(x, y + 20, name, 11, "#777", "middle")


def table(panel, look, found, w):
    ways, rows, several = {t["id"]: t["options"] for t in panel["transformations"]}, {}, len(panel["targets"]) > 1
    for ref, series in found:
        key = tuple(sorted(series["metric"].items()))
        rows.setdefault(key, dict(key))[f"Value #{ref}" if several else "Value"] = shown(series["value"][1], look)
    if matrix := ways.get("groupingToMatrix"):
        down, across, heads, lines = matrix["rowField"], matrix["columnField"], {}, {}
        for cell in rows.values():
            lines.setdefault(cell[down], {down: cell[down]})[cell[across]] = cell["Value"]
        columns, rows = [down, *sorted({cell[across] for cell in rows.values()})], lines
    else:
        order, heads = ways["organize"]["indexByName"], ways["organize"]["renameByName"]
        columns = sorted(order, key=order.get)
    lines = [{c: heads.get(c, c) for c in columns}] + [rows[key] for key in sorted(rows)]
    wide = [max(len(str(line.get(c, 0))) for line in lines) + 4 for c in columns]
    for j, line in enumerate(lines):
        yield box(10, 52 + j * 24, w - 20, 1, "#ddd")
        for i, column in enumerate(columns):
            yield label(14 + (w - 20) * sum(wide[:i]) / sum(wide), 45 + j * 24, line.get(column, 0), 12, "#333" if j else "#777")


def graph(panel, look, found, w, h, args):
    right, bottom, begin = w - 24, h - 42, args.end - args.span
    across = lambda t: LEFT + (right - LEFT) * (t - begin) / args.span
    for t in (begin + args.span * part / 5 for part in range(6)):
        yield label(across(t), bottom + 14, time.strftime("%H:%M", time.gmtime(t)), 10, "#777", "middle")
    axis = look | {"unit": look["unit"].partition("suffix:")[0] or "none"}
    lines = [(name, [(t, float(v)) for t, v in series["values"] if math.isfinite(float(v))]) for name, series in found]
    if panel["type"] == "heatmap":
        buckets = [(0, {})] + sorted((float(name), dict(points)) for name, points in lines)
        counts = [(le, {t: v - lower.get(t, 0) for t, v in at.items()}) for (_, lower), (le, at) in zip(buckets, buckets[1:])]
        counts = [(le, at) for le, at in counts if any(v > 0 for v in at.values())] or counts
        most, each = max([v for _, at in counts for v in at.values()] + [1e-9]), (bottom - 34) / len(counts)
        for i, (le, at) in enumerate(counts):
            y = bottom - (i + 1) * each
            yield label(LEFT - 6, y + 9, shown(le, look), 10, "#777", "end")
            for t, v in at.items():
                x, end = round(across(t - args.step)), round(across(t))
                yield box(x, y, end - x, each - 1, "#1f5fa8", f'opacity="{math.sqrt(max(v, 0) / most):.2f}"')
        return
    every = [v for _, points in lines for _, v in points] or [0]
    low, high = look.get("min", min(every)), max(every)
    size = 10 ** math.floor(math.log10(max(high - low, abs(high) / 50, 1e-9) / 3))
    size = next(size * m for m in (1, 2, 5, 10) if size * m * 4 >= high - low)
    low, high = math.floor(low / size) * size, max(math.ceil(high / size + 1e-9) * size, low + size)
    up = lambda v: bottom - (bottom - 34) * (v - low) / (high - low)
    for v in (low + i * size for i in range(round((high - low) / size) + 1)):
        yield box(LEFT, up(v), right - LEFT, 1, "#e8e8e8") + label(LEFT - 6, up(v) + 4, shown(v, axis), 10, "#777", "end")
    steps = [s for s in look.get("thresholds", {}).get("steps", []) if s["value"] and low < s["value"] < high]
    yield from (box(LEFT, up(s["value"]), right - LEFT, 1.2, NAMED[s["color"]]) for s in steps)
    x = LEFT
    for i, (name, points) in enumerate(lines):
        hue = COLOURS[i % len(COLOURS)]
        for override in panel["fieldConfig"]["overrides"]:
            if re.search(override["matcher"]["options"].strip("/"), name) and override["properties"][0]["id"] == "color":
                hue = NAMED[override["properties"][0]["value"]["fixedColor"]]
        path = " ".join(f"{across(t):.1f},{up(v):.1f}" for t, v in points)
        yield f'<polyline points="{path}" fill="none" stroke="{hue}" stroke-width="1.8"/>'
        yield box(x, h - 15, 10, 4, hue) + label(x + 14, h - 9, name, 10)
        x += 28 + 6 * len(name)


def draw(args):
    yield '<!doctype html><meta charset="utf-8"><title>petnet</title><style>rect { shape-rendering: crispEdges }</style>'
    yield '<body style="margin:16px;background:#f4f5f7;font-family:DejaVu Sans,sans-serif">'
    for board in BOARDS.values():
        height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"]) * ROW
        yield f'<h1 style="font-size:20px">{board["title"]}</h1><svg width="{WIDTH}" height="{height}">'
        for panel in board["panels"]:
            x, y, w, h = (panel["gridPos"][k] * (WIDTH / 24 if k in "xw" else ROW) for k in "xywh")
            w, h, kind, found = w - 6, h - 6, panel["type"], []
            look = panel.get("fieldConfig", {}).get("defaults")
            frame = box(0.5, 0.5, w - 1, h - 1, "#fff", 'stroke="#d5d8dc" rx="4"') if look else ""
            yield f'<svg x="{x}" y="{y}" width="{w}" height="{h}">{frame}{label(10, 20, panel["title"], 12.5, "#111")}'
            for t in panel.get("targets", []):
                for series in ask(args, t["expr"], t["instant"]):
                    name = re.sub(r"{{(\w+)}}", lambda m: series["metric"].get(m[1], ""), t["legendFormat"])
                    found.append((t["refId"] if kind == "table" else name, series))
            if look and not found:
                yield label(w / 2, h / 2 + 6, look.get("noValue", "no data"), 12, "#999", "middle")
            elif kind == "table":
                yield from table(panel, look, found, w)
            elif kind in ("timeseries", "heatmap"):
                yield label(w - 10, 20, look["unit"].partition("suffix:")[2], 10, "#777", "end")
                yield from graph(panel, look, found, w, h, args)
            elif look:
                yield from values(look, found, w, h, kind == "bargauge")
            yield "</svg>"
        yield "</svg>"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["lint", "query", "draw"])
    parser.add_argument("url", nargs="?", default="http://localhost:9090", metavar="PROMETHEUS_URL")
    parser.add_argument("out", nargs="?", default="dashboards.html", type=Path, metavar="OUT.html")
    parser.add_argument("--job-absent", action="append", default=[], choices=BOARDS, help="this dashboard may have no data")
    parser.add_argument("--minutes", type=int, default=5, help="how far back")
    args = parser.parse_args()
    args.end, args.span, args.step = time.time(), 60 * args.minutes, max(args.minutes // 2, 1)
    if args.what == "draw":
        return args.out.write_text("\n".join(draw(args))) and None
    return "\n".join(lint() if args.what == "lint" else query(args)) or print("no faults")


sys.exit(main())
