"""Speed of localhub's engine against the same scripts in Node.js, looped over by hand (node_loops.js).

Both run the same text over the same arrays, in processes of their own that take turns, after one round to warm up; the
results must be equal bit for bit. It counts whatever it takes to come from NumPy's arrays to arrays of results: for the
engine also the copying into V8's memory and out of it, for Node only the loop, whose arrays are there from the start.

    python benchmarks/node.py [--node PROGRAM] [--repeats N]

Node.js is not installed with this project: get it from https://nodejs.org, by `apt install nodejs`, or by
`npm install node@26`, whose V8 is about as new as mini-racer's.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from common import (
    BANDS,
    HERE,
    EngineRun,
    alternated,
    land_cover,
    machine,
    orbits,
    random_bands,
    ratios,
    scenes_of_the_year,
    spread,
)
from py_mini_racer import MiniRacer

WAYS = ("literals", "kept")
"""How the hand-written loops make samples; the engine is compared with whichever is faster."""
GOAL = 0.7


@dataclass(frozen=True, slots=True)
class Case:
    """A script and what to run it over."""

    name: str
    loop: str
    """Its hand-written loop in node_loops.js."""
    source: str
    bands: tuple[str, ...]
    scenes: int
    shape: tuple[int, int]
    """Rows and columns."""
    rounds: int
    """Over all pixels in one measurement, so that each takes about half a second."""

    @property
    def pixels(self) -> int:
        """Of all rounds."""
        return self.shape[0] * self.shape[1] * self.rounds


def cases() -> list[Case]:
    """Return what is measured."""
    true_colour, max_ndvi = (
        HERE.joinpath(name).read_text(encoding="utf-8") for name in ("true_colour.js", "max_ndvi.js")
    )
    inputs = (*BANDS, "CLM", "dataMask")
    return [
        Case("true colour, SIMPLE", "trueColour", true_colour, ("B02", "B03", "B04"), 1, (1000, 1000), 20),
        Case("max NDVI, 60 scenes", "maxNdvi", max_ndvi, ("B04", "B08"), 60, (300, 500), 10),
        Case("land_cover.js, 30 scenes", "landCover", land_cover(), inputs, 30, (160, 500), 1),
        Case("land_cover.js, 60 scenes", "landCover", land_cover(), inputs, 60, (120, 500), 1),
    ]


class NodeRun:
    """A hand-written loop in a Node.js process of its own."""

    def __init__(self, process: "subprocess.Popen[str]", version: str) -> None:
        self._process = process
        self.version = version

    @classmethod
    @contextmanager
    def started(cls, node: str, job: Path) -> Iterator[Self]:
        """Start it and wait until it has written its results."""
        command = [node, str(HERE / "node_loops.js"), str(job)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            yield cls(process, process.stdout.readline().strip())
            assert process.stdin
            process.stdin.close()

    def cpu_seconds(self) -> float:
        """Run all rounds."""
        assert self._process.stdin
        assert self._process.stdout
        print("again", file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())


def job(case: Case, way: str, bands: dict[str, Any], run: EngineRun, folder: Path) -> Path:
    """Write what Node reads: the script, the arrays, and a description of both."""
    script, description = folder / "evalscript.js", folder / f"{way}.json"
    script.write_text(case.source, encoding="utf-8")
    for name, values in bands.items():
        values.tofile(folder / f"{name}.input")
    described = {
        "script": str(script),
        "loop": case.loop,
        "samples": way,
        "rounds": case.rounds,
        "pixels": case.shape[0] * case.shape[1],
        "scenes": case.scenes,
        "orbits": orbits(scenes_of_the_year(case.scenes)),
        "dates": run.plan.outputs[0].bands,
        "bands": [{"name": n, "dtype": v.dtype.name, "file": str(folder / f"{n}.input")} for n, v in bands.items()],
        "outputs": [{"id": o.id, "file": str(folder / f"{way}.{o.id}.output")} for o in run.plan.outputs],
    }
    description.write_text(json.dumps(described))
    return description


def check_equal(run: EngineRun, way: str, folder: Path) -> None:
    """Compare the engine's results with Node's, bit for bit."""
    for output in run.plan.outputs:
        ours, path = run.values[output.id], folder / f"{way}.{output.id}.output"
        assert ours.tobytes() == path.read_bytes(), f"Output {output.id} differs between the engine and Node."


def measured(case: Case, node: str, repeats: int) -> tuple[dict[str, list[float]], str]:
    """Return the CPU seconds of the engine ("ours") and of each hand-written loop, and Node's version."""
    bands = random_bands(case.bands, (case.scenes, *case.shape))
    run = EngineRun(case.source, scenes_of_the_year(case.scenes), bands)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            jobs = {way: job(case, way, bands, run, folder) for way in WAYS}
            with NodeRun.started(node, jobs["literals"]) as literals, NodeRun.started(node, jobs["kept"]) as kept:
                seconds = alternated(
                    repeats,
                    ours=lambda: run.cpu_seconds(case.rounds),
                    literals=literals.cpu_seconds,
                    kept=kept.cpu_seconds,
                )
            for way in WAYS:
                check_equal(run, way, folder)
            return seconds, literals.version
    finally:
        run.close()


def table_row(case: Case, seconds: dict[str, list[float]]) -> str:
    """One line: pixels a second of the engine and of the faster loop, and the ratio."""
    way = min(WAYS, key=lambda way: statistics.median(seconds[way]))
    rates = {name: [case.pixels / value for value in values] for name, values in seconds.items()}
    ratio = ratios(rates["ours"], rates[way])
    return f"| {case.name} | {spread(rates['ours'])} | {spread(rates[way])} | {way} | {spread(ratio, 2)} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--node", default="node", help="the program")
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    options = parser.parse_args()
    node = shutil.which(options.node)
    if node is None:
        parser.error(f"There is no program {options.node}: install Node.js or name it by --node; see --help.")
    rows = []
    version = ""
    for case in cases():
        seconds, version = measured(case, node, options.repeats)
        rows.append(table_row(case, seconds))
    with MiniRacer() as racer:
        print(f"{machine()}; mini-racer with V8 {racer.v8_version}; {version}")
    print(f"pixels per CPU second, median (range) of {options.repeats} turns; goal of the ratio {GOAL}")
    print("| script | engine | Node, looped by hand | samples | ratio |", "|---|---|---|---|---|", *rows, sep="\n")


if __name__ == "__main__":
    main()
