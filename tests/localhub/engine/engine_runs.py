"""Runs a script over a few pixels, for the tests of the engine."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localhub.engine import Dataset, Evalscript, Plan, SceneInfo

START = datetime(2019, 1, 1, tzinfo=UTC)
END = datetime(2019, 12, 31, 23, 59, 59, tzinfo=UTC)


@dataclass(frozen=True)
class Run:
    """What came of a script."""

    plan: Plan
    values: dict[str, NDArray[Any]]
    user_data: Any
    wrong_lengths: dict[str, int]


def scenes_on(*days: float, cloud_cover: float = 10.0) -> list[SceneInfo]:
    """Scenes sensed so many days after 2019-01-01 10:00 UTC, in the given order."""
    return [
        SceneInfo(START + timedelta(days=day, hours=10), cloud_cover, f"s3://bucket/tiles/33/T/VL/{number}")
        for number, day in enumerate(days)
    ]


def dataset(scenes: Iterable[SceneInfo] = (), **properties: Any) -> Dataset:
    """The only collection of a request over a year, or one of several; Sentinel-2 L2A unless it is said."""
    return Dataset(list(scenes), START, END, **{"collection": "sentinel-2-l2a"} | properties)


def run(source: str, bands: Mapping[str, Any], scenes: Iterable[SceneInfo] = (), **options: Any) -> Run:
    """Evaluate a script; bands: name → array (samples, height, width), or (samples,) for a single pixel."""
    shaped = {name: _as_stored(np.asarray(values)) for name, values in bands.items()}
    shaped = {name: values.reshape(-1, 1, 1) if values.ndim < 2 else values for name, values in shaped.items()}
    with Evalscript(source) as script:
        plan = script.prepare([dataset(scenes)], **options)
        values = script.evaluate([shaped])
        return Run(plan, values, script.user_data(), script.wrong_lengths())


def _as_stored(values: NDArray[Any]) -> NDArray[Any]:
    """Files have no 64-bit integers; NumPy makes them of plain numbers."""
    return values.astype("int32") if values.dtype == np.int64 else values


def script(
    body: str, *, bands: str = "1", sample_type: str = "FLOAT32", mosaicking: str = "ORBIT", more: str = ""
) -> str:
    return (
        "//VERSION=3\nfunction setup() { return {input: [{bands: ['B04', 'dataMask'], units: 'DN'}],"
        f" output: {{bands: {bands}, sampleType: '{sample_type}'}}, mosaicking: '{mosaicking}'}}; }}\n"
        f"function evaluatePixel(samples, scenes, inputMetadata, customData, outputMetadata) {{ {body} }}\n{more}"
    )


def pixel(body: str, scenes: int = 3, **options: str) -> list[float]:
    """What one pixel returns; its samples have B04 = 10, 20, 30 … on days 5, 4, 3 …"""
    source = script(body, **options)
    days = range(scenes, 0, -1)
    result = run(source, {"B04": [10 * (n + 1) for n in range(scenes)], "dataMask": [1] * scenes}, scenes_on(*days))
    return result.values["default"].ravel().tolist()
