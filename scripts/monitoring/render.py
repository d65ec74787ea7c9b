#!/usr/bin/env python3
"""Draw the dashboards from the real data of a running demo, for docs/MONITORING.md.

    render.py                    record twenty minutes of a demo, then draw docs/img/*.png
    render.py --keep FOLDER      the same, and keep the recording
    render.py --from FOLDER      draw a kept recording again

Grafana cannot run everywhere; the checked-in dashboards can be read everywhere. Each panel's own queries are sent to
Prometheus as Grafana would, and drawn at the panel's own place on the grid (draw.py).

The recording has the demo's steady traffic, a wave on top of it, and a provider that fails for two minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import catalog
import dashboards
import draw
import grafana
import stack

OUT = catalog.ROOT / "docs" / "img"
SCRAPE = 5
#: Picture → dashboard, first and last row of panels (by heading).
PICTURES = {
    "overview": ("nexusgate-overview", "At a glance", "Latency"),
    "overview-tokens-errors": ("nexusgate-overview", "Tokens", "Shares"),
    "overview-cost-models": ("nexusgate-overview", "Cost", "Models compared"),
    "providers": ("nexusgate-providers", "At a glance", "Failover"),
    "keys-and-cost": ("nexusgate-keys-and-cost", "At a glance", "Limits"),
    "internals": ("nexusgate-internals", "At a glance", "Request log"),
}
#: How long, in shares of the time that is shown, and when a provider fails.
FAILS_AT, FAILS_FOR = 0.45, 0.2


# --- recording -----------------------------------------------------------------------------------------------------


def ask(ready: dict[str, Any], draw_from: random.Random) -> None:
    """One request with the visitor's key, whatever its result; the pictures show it."""
    model = draw_from.choice([name for name in ready["models"] if "embedding" not in name])
    body = {"model": model, "messages": [{"role": "user", "content": "Say hello."}], "stream": draw_from.random() < 0.5}
    headers = {"Authorization": f"Bearer {ready['api_key']}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{ready['base_url']}/chat/completions", json.dumps(body).encode(), headers)
    with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
        with urllib.request.urlopen(request, timeout=60) as response:
            response.read()


@contextlib.contextmanager
def wave(ready: dict[str, Any], period: float, peak: float) -> Iterator[None]:
    """Traffic that rises to `peak` requests a second and falls, repeatedly."""
    stop, began, workers = threading.Event(), time.monotonic(), 12

    def work(number: int) -> None:
        draw_from = random.Random(number)
        while not stop.is_set():
            rate = peak * (1.05 - math.cos(2 * math.pi * (time.monotonic() - began) / period)) / 2
            if not stop.wait(draw_from.expovariate(rate / workers)):
                ask(ready, draw_from)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def direct(provider: dict[str, str], mode: str) -> None:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(provider["control_url"], json.dumps({"mode": mode}).encode(), headers)
    urllib.request.urlopen(request, timeout=10).close()


def record(folder: Path, shown: float) -> None:
    """Twice `shown` seconds, because some panels compare the time shown with the time before."""
    with contextlib.ExitStack() as running:
        ready = running.enter_context(stack.demo(folder))
        config = stack.write_config(
            folder / "prometheus",
            target=ready["url"].removeprefix("http://"),
            token="",
            scrape_interval=f"{SCRAPE}s",
            evaluation_interval=f"{SCRAPE}s",
        )
        running.enter_context(stack.prometheus(config, folder))
        running.enter_context(wave(ready, shown / 2, 14))
        began = time.time()
        for at, mode in ((1 + FAILS_AT, "failing"), (1 + FAILS_AT + FAILS_FOR, "healthy"), (2, None)):
            print(f"recording: {max(0, at * shown + began - time.time()):.0f} s until {mode or 'the end'}", flush=True)
            time.sleep(max(0, began + at * shown - time.time()))
            if mode:
                direct(ready["providers"][0], mode)
        end = time.time()
    (folder / "window.json").write_text(json.dumps({"start": end - shown, "end": end}))


@contextlib.contextmanager
def replay(folder: Path) -> Iterator[tuple[stack.Prometheus, grafana.Window]]:
    """The recording, served by a Prometheus that scrapes nothing."""
    window = json.loads((folder / "window.json").read_text())
    (folder / "replay.yml").write_text("global: {}\n")
    with stack.prometheus(folder / "replay.yml", folder) as server:
        yield server, grafana.Window(window["start"], window["end"], SCRAPE)


# --- drawing -------------------------------------------------------------------------------------------------------


def answers(server: stack.Prometheus, window: grafana.Window, board: dashboards.Dashboard, panel: dashboards.Panel):
    """(target, series) for each query of a panel."""
    all_values = {variable.name: variable.all_value for variable in board.variables}
    chosen = {name: grafana.ALL for name in all_values}
    for target in panel.targets:
        expr = grafana.fill(target.expr, window, chosen, all_values)
        yield target, grafana.ask(server, target, expr, window)["result"]


def between(board: dashboards.Dashboard, first: str, last: str) -> list[dict[str, Any]]:
    """The panels and headings from the row `first` to the end of the row `last`."""
    raws = sorted(board.raw["panels"], key=lambda raw: (raw["gridPos"]["y"], raw["gridPos"]["x"]))
    headings = [index for index, raw in enumerate(raws) if raw["type"] == "row"]
    start = next(index for index in headings if raws[index]["title"] == first)
    end_row = next(index for index in headings if raws[index]["title"] == last)
    end = next((index for index in headings if index > end_row), len(raws))
    return raws[start:end]


def draw_all(server: stack.Prometheus, window: grafana.Window, out: Path) -> None:
    boards = {board.uid: board for board in dashboards.load()}
    for name, (uid, first, last) in PICTURES.items():
        board = boards[uid]
        panels = {panel.raw["id"]: panel for panel in board.panels}
        page = draw.Page(board.title, between(board, first, last), window)
        for raw in page.raws:
            if raw["type"] != "row":
                panel = panels[raw["id"]]
                page.panel(panel, list(answers(server, window, board, panel)))
        page.save(out / f"{name}.png")
        print(f"{name}.png: {len(page.raws)} panels and headings")
    draw.alert_story(server, window, out / "alert.png")
    print("alert.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="how much time the pictures show (default 10)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the recording here")
    parser.add_argument("--from", type=Path, metavar="FOLDER", dest="source", help="draw this recording")
    parser.add_argument("--out", type=Path, default=OUT, help="where the pictures go (default docs/img)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with stack.scratch() as folder:
        source = args.source
        if source is None:
            record(folder, args.minutes * 60)
            source = folder
            if args.keep:
                shutil.copytree(folder, args.keep, dirs_exist_ok=True)
        with replay(source) as (server, window):
            draw_all(server, window, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
