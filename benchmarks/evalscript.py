"""Speed of evalscripts/land_cover.js in localhub's engine, against a script in the published manner and the floor.

Same scenes, pixels, dates and outputs, in one process; runs alternate, and each pair gives one ratio. Times are CPU
seconds of this process, all threads together, so that other work on the machine counts little.

    python benchmarks/evalscript.py                against benchmarks/evalscript_date_style.js (ours)
    python benchmarks/evalscript.py --peer FILE    against sentinelhub-py's examples/data/interpolation_evalscript.js
"""

import argparse
import importlib.resources
import json
import re
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localhub.engine import Dataset, Evalscript, SceneInfo
from tasks.evalscript import CONSTANT, render

BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")
START, END, STEP_DAYS = datetime(2019, 1, 1, tzinfo=UTC), datetime(2019, 12, 31, tzinfo=UTC), 10
SCENES, CLOUDY_SHARE = 60, 0.4
WIDTH, OUR_ROWS, PEER_ROWS = 500, 120, 8
GOAL = 40
OWN_PEER = Path(__file__).with_name("evalscript_date_style.js")

ADAPTED = """
// What follows replaces the script's own setup and evaluatePixel, and calls the rest of it.
const bandNames = ["B02", "B03", "B04", "B08", "B11", "B12"];
const indexBands = {NDVI: ["B08", "B04"], NDWI: ["B03", "B08"], NDBI: ["B11", "B08"]};
function setup() {
  return {
    input: [{bands: [...bandNames, "CLM", "dataMask"], units: "DN"}],
    output: [
      ...[...bandNames, ...Object.keys(indexBands)].map((id) => ({id, bands: nb_bands, sampleType: SampleType.UINT16})),
      {id: "QUALITY", bands: nb_bands, sampleType: SampleType.UINT8},
      {id: "VALID_COUNT", bands: 1, sampleType: SampleType.UINT16}],
    mosaicking: "ORBIT"
  };
}
function evaluatePixel(samples, scenes) {
  var dates = [];
  var series = {B02: [], B03: [], B04: [], B08: [], B11: [], B12: []};
  for (var i = samples.length - 1; i >= 0; i--) {
    if (is_valid(samples[i])) {
      dates.push(withoutTime(new Date(scenes[i].date)));
      for (const band of bandNames) series[band].push(samples[i][band]);
    }
  }
  var result = {VALID_COUNT: [dates.length]};
  for (const band of bandNames) [result[band], result.QUALITY] = lininterp(sampled_dates, dates, series[band], 0);
  for (const index in indexBands) {
    result[index] = interpolated_index(result[indexBands[index][0]], result[indexBands[index][1]]);
  }
  return result;
}
"""
"""The published script has two bands and one index; this extends it to ours, with its own functions doing the work."""


class Case:
    """A script, its scenes and its pixels; ``rate`` runs it once."""

    def __init__(self, name: str, source: str, scenes: int, rows: int) -> None:
        self.name = name
        self._pixels = rows * WIDTH
        self._script = Evalscript(source)
        infos, self._bands = synthetic(scenes, rows)
        self._script.prepare([Dataset(infos, START, END)])
        self.values = self._script.evaluate([self._bands])  # also warms V8 up

    def rate(self) -> float:
        """Pixels per CPU second."""
        begin = time.process_time()
        self._script.evaluate([self._bands])
        return self._pixels / (time.process_time() - begin)

    def close(self) -> None:
        """Free the script's V8 context."""
        self._script.close()


def synthetic(scenes: int, rows: int) -> tuple[list[SceneInfo], dict[str, NDArray[Any]]]:
    """Scenes on different days, newest first, and random bands (scenes, rows, WIDTH); fewer rows are the first ones."""
    random = np.random.default_rng(7)
    days = np.sort(random.choice(365, scenes, replace=False))[::-1].tolist()
    infos = [SceneInfo(START + timedelta(days=day, hours=10), 40.0, f"scene-{day}") for day in days]
    shape = (scenes, OUR_ROWS, WIDTH)
    bands: dict[str, NDArray[Any]] = {band: random.integers(1, 6000, shape).astype("uint16") for band in BANDS}
    bands["CLM"] = (random.random(shape) < CLOUDY_SHARE).astype("uint8")
    bands["dataMask"] = np.ones(shape, "uint8")
    bands = {name: array[:, :rows] for name, array in bands.items()}
    return infos, bands


def our_script() -> str:
    """evalscripts/land_cover.js with the benchmark's dates."""
    template = importlib.resources.files("evalscripts").joinpath("land_cover.js").read_text(encoding="utf-8")
    parameters, _ = json.JSONDecoder().raw_decode(template.partition(CONSTANT)[2])
    dates = {"start": f"{START:%Y-%m-%d}", "end": f"{END:%Y-%m-%d}", "stepDays": STEP_DAYS}
    return render(template, parameters | dates)


def empty_script() -> str:
    """Same inputs and outputs, and an evaluatePixel that does nothing: what handing over the samples costs."""
    return our_script() + "\nevaluatePixel = function (samples, scenes) {};\n"


def adapted_peer(path: Path) -> str:
    """Give the published script the benchmark's dates, bands and outputs."""
    source = path.read_text(encoding="utf-8")
    for pattern, replacement in (
        (r"(start_date = new Date\()[^)]*\)", r"\g<1>2019, 0, 1)"),
        (r"(end_date = new Date\()[^)]*\)", r"\g<1>2019, 11, 31)"),
        (r"(sample_timestamps\(start_date, end_date, )\d+", rf"\g<1>{STEP_DAYS}"),
    ):
        source, count = re.subn(pattern, replacement, source, count=1)
        if count == 0:
            raise SystemExit(f"{path} is not the published script: nothing in it matches {pattern}.")
    return source + ADAPTED


def difference(ours: Case, peer: Case) -> int:
    """Largest difference between both results where the peer has values, in stored units."""
    inside = peer.values["QUALITY"] == 1
    largest = 0
    for name in (*BANDS, "NDVI", "NDWI", "NDBI"):
        mine = ours.values[name][:, :PEER_ROWS][inside].astype(int)
        largest = max(largest, int(np.abs(mine - peer.values[name][inside]).max()))
    return largest


def summary(values: Sequence[float]) -> str:
    """Median and range, in the same digits."""
    return f"{statistics.median(values):>10,.0f}   ({min(values):,.0f} to {max(values):,.0f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="the published script, from its repository")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of runs")
    options = parser.parse_args()
    source = adapted_peer(options.peer) if options.peer else OWN_PEER.read_text(encoding="utf-8")
    label = f"published script, adapted ({options.peer.name})" if options.peer else "own script in the published manner"
    ours = Case("land_cover.js, 60 scenes", our_script(), SCENES, OUR_ROWS)
    peer = Case(f"{label}, 60 scenes", source, SCENES, PEER_ROWS)
    others = [
        Case("land_cover.js, 30 scenes", our_script(), SCENES // 2, OUR_ROWS),
        Case("floor: evaluatePixel that does nothing, 60 scenes", empty_script(), SCENES, OUR_ROWS),
    ]
    cases = [ours, peer, *others]
    rates: dict[str, list[float]] = {case.name: [] for case in cases}
    for _ in range(options.repeats):
        for case in cases:
            rates[case.name].append(case.rate())
    dates = ours.values["B02"].shape[0]
    print(f"8 input bands, {dates} dates, 11 outputs; pixels per CPU second, median (range) of {options.repeats}")
    for name, values in rates.items():
        print(f"{name:<88}{summary(values)}")
    ratios = [mine / theirs for mine, theirs in zip(rates[ours.name], rates[peer.name], strict=True)]
    print(f"{f'ratio: land_cover.js to the {label}; goal {GOAL}':<88}{summary(ratios)}")
    print(f"{'largest difference where both interpolate, in stored units':<88}{difference(ours, peer):>10}")
    for case in cases:
        case.close()


if __name__ == "__main__":
    main()
