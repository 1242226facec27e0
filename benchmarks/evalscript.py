"""Speed of evalscripts/land_cover.js in localhub's engine, against a script in the published manner and the floor.

Same scenes, pixels, dates and outputs, in one process; runs alternate, and each pair gives one ratio.

    python benchmarks/evalscript.py                against benchmarks/evalscript_date_style.js (ours)
    python benchmarks/evalscript.py --peer FILE    against sentinelhub-py's examples/data/interpolation_evalscript.js
"""

import argparse
import re
from pathlib import Path

import numpy as np
from common import (
    BANDS,
    HERE,
    STEP_DAYS,
    EngineRun,
    alternated,
    land_cover,
    machine,
    random_bands,
    ratios,
    scenes_of_the_year,
    spread,
)

SCENES = 60
WIDTH, OUR_ROWS, PEER_ROWS = 500, 120, 8
GOAL = 40
OWN_PEER = HERE / "evalscript_date_style.js"

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
        bands = random_bands((*BANDS, "CLM", "dataMask"), (scenes, OUR_ROWS, WIDTH))
        first_rows = {name: values[:, :rows] for name, values in bands.items()}
        self.run = EngineRun(source, scenes_of_the_year(scenes), first_rows)

    def rate(self) -> float:
        """Pixels per CPU second."""
        return self._pixels / self.run.cpu_seconds()


def empty_script() -> str:
    """Same inputs and outputs, and an evaluatePixel that does nothing: what handing over the samples costs."""
    return land_cover() + "\nevaluatePixel = function (samples, scenes) {};\n"


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
    inside = peer.run.values["QUALITY"] == 1
    largest = 0
    for name in (*BANDS, "NDVI", "NDWI", "NDBI"):
        mine = ours.run.values[name][:, :PEER_ROWS][inside].astype(int)
        largest = max(largest, int(np.abs(mine - peer.run.values[name][inside]).max()))
    return largest


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="the published script, from its repository")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of runs")
    options = parser.parse_args()
    source = adapted_peer(options.peer) if options.peer else OWN_PEER.read_text(encoding="utf-8")
    label = f"published script, adapted ({options.peer.name})" if options.peer else "own script in the published manner"
    ours = Case("land_cover.js, 60 scenes", land_cover(), SCENES, OUR_ROWS)
    peer = Case(f"{label}, 60 scenes", source, SCENES, PEER_ROWS)
    others = [
        Case("land_cover.js, 30 scenes", land_cover(), SCENES // 2, OUR_ROWS),
        Case("floor: evaluatePixel that does nothing, 60 scenes", empty_script(), SCENES, OUR_ROWS),
    ]
    cases = [ours, peer, *others]
    rates = alternated(options.repeats, **{case.name: case.rate for case in cases})
    dates = ours.run.values["B02"].shape[0]
    print(machine())
    print(f"8 input bands, {dates} dates, 11 outputs; pixels per CPU second, median (range) of {options.repeats}")
    for name, values in rates.items():
        print(f"{name:<88}{spread(values)}")
    title = f"ratio: land_cover.js to the {label}; goal {GOAL}"
    print(f"{title:<88}{spread(ratios(rates[ours.name], rates[peer.name]))}")
    print(f"{'largest difference where both interpolate, in stored units':<88}{difference(ours, peer):>10}")
    for case in cases:
        case.run.close()


if __name__ == "__main__":
    main()
