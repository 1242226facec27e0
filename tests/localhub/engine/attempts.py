"""Runs a script as a worker does, for the tests of what scripts must not do."""

from typing import Any

import numpy as np

from localhub.engine import Evalscript
from localhub.engine.limits import resident_bytes
from tests.localhub.engine.engine_runs import dataset, scenes_on

HEAD = """//VERSION=3
function setup() {
  return {input: [{bands: ["B04"], units: "DN"}], output: {bands: 1, sampleType: "FLOAT32"}, mosaicking: "ORBIT"};
}
"""
"""Four lines: what follows begins in line 5."""

GOOD = HEAD + "function evaluatePixel(samples) { return [samples[0].B04 + samples[1].B04]; }"
GOOD_VALUES = [[4.0, 6.0, 8.0], [4.0, 6.0, 8.0]]


def evaluated(source: str) -> tuple[list[list[float]], Any]:
    """Return the values of two blocks of a row of three pixels, two scenes each, and the userdata."""
    row = np.array([[[1, 2, 3]], [[3, 4, 5]]], "float32")
    with Evalscript(source) as script:
        script.prepare([dataset(scenes_on(1, 2))])
        blocks = [script.evaluate([{"B04": row}])["default"][0, 0].tolist() for _ in range(2)]
        return blocks, script.user_data()


def resident_bytes_of(_task: None) -> int:
    """Return the resident memory of the worker."""
    return resident_bytes()
