"""Look at the report in a real browser: pictures on a phone and a desk, in light and dark.

    python tests/runs/report/pictures.py RUN OUTPUT

It needs Chromium. On a phone nothing may reach beyond the screen, both win rates must stand on the
first screen, and no text may be smaller than 12 pixels. In the dark the page must be dark."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.image import imread

from ssppo_jax.runs.report.build import build_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZES = {"phone": (390, 844), "desk": (1280, 900)}
SCHEMES = {"light": 1, "dark": 0}  # as Blink counts them
PROBE = """<!doctype html>
<iframe src="{page}" style="width: {width}px; height: {height}px; border: 0" onload="
const d = this.contentDocument, all = [...d.querySelectorAll('.story *')];
const bottom = x => x.getBoundingClientRect().bottom;
document.title = JSON.stringify({{
  wide: d.documentElement.scrollWidth,
  rates: Math.max(...[...d.querySelectorAll('.judge .bar')].map(bottom)),
  judges: d.querySelectorAll('.judge').length,
  cards: d.querySelectorAll('.story article').length,
  smallest: Math.min(...all.map(x => parseFloat(getComputedStyle(x).fontSize)))}})"></iframe>"""


def browse(*arguments):
    """Run the browser without a window and return what it prints."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        sys.exit(f"no browser: install one of {', '.join(BROWSERS)}")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    flags.append("--allow-file-access-from-files")
    with tempfile.TemporaryDirectory() as profile:
        command = [found, *flags, f"--user-data-dir={profile}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def measure(page, width, height):
    """Return what the page's layout is in a frame of so many pixels."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.html"
        probe.write_text(PROBE.format(page=page.as_uri(), width=width, height=height))
        shown = browse("--dump-dom", "--virtual-time-budget=5000", probe.as_uri())
    told = re.search(r"<title>(.*?)</title>", shown, re.DOTALL)
    if told is None:
        sys.exit("the browser did not load the report")
    return json.loads(told[1])


def main(run, output):
    """Take four pictures of a run's report and check the layout."""
    page = build_report(run).resolve()
    output.mkdir(parents=True, exist_ok=True)
    for size, (width, height) in SIZES.items():
        for scheme, number in SCHEMES.items():
            file = output / f"report_{size}_{scheme}.png"
            browse(
                f"--blink-settings=preferredColorScheme={number}",
                f"--window-size={width},{height}",
                f"--screenshot={file}",
                page.as_uri(),
            )
            light = float(np.median(imread(file)[..., :3]))
            print(f"{file}: median light {light:.2f}")
            assert (light > 0.8) if scheme == "light" else (light < 0.2), f"{file} is not {scheme}"
    found = measure(page, *SIZES["phone"])
    print(f"on a phone: {found}")
    assert found["wide"] <= SIZES["phone"][0], "something reaches beyond the screen"
    assert found["judges"] >= 1 and found["cards"] == 3
    assert found["rates"] <= SIZES["phone"][1], "a win rate is below the first screen"
    assert found["smallest"] >= 12, "some text is too small"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
