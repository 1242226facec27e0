"""What the benchmarks share: scenes, scripts, and how measurements are taken and told.

Times are CPU seconds of a whole process, all its threads together: other work on the machine counts little. What is
compared runs in turns, and each turn gives one ratio.
"""

import importlib.resources
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localhub.engine import Dataset, Evalscript, SceneInfo
from localhub.engine.scenes import describe_samples, group_scenes
from tasks.evalscript import CONSTANT, render

HERE = Path(__file__).parent
BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")
START, END, STEP_DAYS = datetime(2019, 1, 1, tzinfo=UTC), datetime(2019, 12, 31, tzinfo=UTC), 10
CLOUDY_SHARE = 0.4

Bands = Mapping[str, NDArray[Any]]
"""Band → numbers as stored (scenes, rows, columns)."""


def scenes_of_the_year(count: int) -> list[SceneInfo]:
    """Scenes on different days, newest first."""
    days = np.sort(np.random.default_rng(7).choice(365, count, replace=False))[::-1].tolist()
    return [SceneInfo(START + timedelta(days=day, hours=10), 40.0, f"scene-{day}") for day in days]


def random_bands(names: Sequence[str], shape: tuple[int, int, int]) -> dict[str, NDArray[Any]]:
    """Reflectances, CLM and dataMask at random."""
    random = np.random.default_rng(7)
    special: dict[str, Callable[[], NDArray[Any]]] = {
        "CLM": lambda: (random.random(shape) < CLOUDY_SHARE).astype("uint8"),
        "dataMask": lambda: np.ones(shape, "uint8"),
    }
    reflectance = lambda: random.integers(1, 6000, shape, "uint16")  # noqa: E731
    return {name: special.get(name, reflectance)() for name in names}


def orbits(scenes: Sequence[SceneInfo]) -> list[dict[str, Any]]:
    """The scenes as a script sees them with mosaicking ORBIT."""
    return describe_samples(scenes, group_scenes(scenes, "ORBIT"), "ORBIT")


def land_cover() -> str:
    """evalscripts/land_cover.js with the benchmarks' dates."""
    template = importlib.resources.files("evalscripts").joinpath("land_cover.js").read_text(encoding="utf-8")
    parameters, _ = json.JSONDecoder().raw_decode(template.partition(CONSTANT)[2])
    dates = {"start": f"{START:%Y-%m-%d}", "end": f"{END:%Y-%m-%d}", "stepDays": STEP_DAYS}
    return render(template, parameters | dates)


class EngineRun:
    """A script in localhub's engine, over given scenes and pixels. Close it."""

    def __init__(self, source: str, scenes: Sequence[SceneInfo], bands: Bands) -> None:
        self._bands = bands
        self._script = Evalscript(source)
        try:
            self.plan = self._script.prepare([Dataset(scenes, START, END)])
            self.values = self._script.evaluate([bands])  # also warms V8 up
        except BaseException:
            self.close()
            raise

    def cpu_seconds(self, rounds: int = 1) -> float:
        """Evaluate all pixels so many times."""
        return cpu_seconds(lambda: self._script.evaluate([self._bands]), rounds)

    def close(self) -> None:
        """Free the script's V8 context."""
        self._script.close()


def cpu_seconds(work: Callable[[], object], rounds: int = 1) -> float:
    """Return the CPU seconds of this process for so many rounds of some work."""
    begin = time.process_time()
    for _ in range(rounds):
        work()
    return time.process_time() - begin


def alternated(repeats: int, **measurements: Callable[[], float]) -> dict[str, list[float]]:
    """Take each measurement in turn, and all of that so many times."""
    found: dict[str, list[float]] = {name: [] for name in measurements}
    for _ in range(repeats):
        for name, measure in measurements.items():
            found[name].append(measure())
    return found


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the ratio of each turn."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median and range, in the same digits."""
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle:>10} ({low} to {high})"


def machine() -> str:
    """The processor, and Python's version."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    return f"{model or platform.processor()}, Python {platform.python_version()}"
