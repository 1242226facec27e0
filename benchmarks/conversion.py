"""Tiles to EOPatches: against eo-grow on the same files, and against the floor.

The floor is the fastest decoding of the files' blocks (DEFLATE and predictor undone, nothing else) plus the fastest
encoding of the finished arrays among those whose files are at most 1.15 times as large as eo-learn's, alone, on all
cores, from memory to memory. It is taken with the same arrays and the same libraries, whichever is faster. "floor and
files" besides reads what is decoded from the disk, and writes what is encoded to it. Like us, it is measured when its
memory is there: each process converts the tiles twice, and the second time counts. Against eo-grow the first one does.
It is taken before and after ours, since the clock of a processor changes.

eo-grow (1.7.15) has an environment of its own, which is made when it is not there; it writes .npy.gz only.

    python benchmarks/conversion.py [--layouts 256PIXEL ...] [--dtypes uint16 float32] [--formats npy.gz zarr]
        [--tiles 4] [--pixels 1000] [--repeats 3] [--data FOLDER] [--s3] [--no-peer] [--growth] [--large]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import geopandas as gpd
import imagecodecs
import numpy as np
import shapely
from common import cpu_seconds, machine, ratios, spread
from delivered import BANDS, INDICES, deliver, numbers, square
from eolearn.core import EOPatch
from isal import igzip, isal_zlib
from numcodecs import Blosc
from numpy.typing import NDArray

from localhub.seaweed import SeaweedFS
from tasks.arrayfiles import ArraySource, by_blosc
from tasks.conversion import FeatureMapping, FeatureRule, PatchOptions, Provenance, TileFiles, convert_tile
from tasks.conversion.geotiff import HORIZONTAL, Layout, read_layout
from tasks.storage import Storage, open_filesystem
from tasks.workers import room, workers

HERE = Path(__file__).parent
LAYOUTS = {f"{block}{interleave}": (block, interleave) for block in (256, 1024) for interleave in ("PIXEL", "BAND")}
PROVENANCE = Provenance("request", "fingerprint", "0" * 64)
LARGEST_FILES = 1.15
"""Of eo-learn's."""
Encoder = Callable[[NDArray[Any]], bytes | bytearray]


@dataclass(frozen=True)
class Case:
    """What is converted, and how."""

    root: str
    """Local folder, or S3 URL, below which tiles/<name> lie."""
    tiles: int
    pixels: int
    dtype: str
    file_format: str
    at_once: int = 2
    again: bool = False
    """Whether the same is done a second time in the same process, as in the midst of a run: its memory is there."""
    endpoint_url: str | None = None

    @property
    def mapping(self) -> FeatureMapping:
        """The features that eo-grow can make as well: it knows no offset and no number for no data."""
        scale = 1e-4 if self.dtype == "float32" else 1.0
        rules = [("data", "BANDS", BANDS, self.dtype, scale)]
        rules += [("data", index, (index,), self.dtype, scale) for index in INDICES]
        rules += [("mask", "QUALITY", ("QUALITY",), "uint8", 1.0)]
        keys = ("feature_type", "name", "outputs", "dtype", "scale")
        return FeatureMapping(
            features=tuple(FeatureRule(**dict(zip(keys, rule, strict=True))) for rule in rules), quality_output=None
        )


def measured(case: Case) -> dict[str, float]:
    """Convert all tiles in this process, and perhaps again; "first" is what a process takes that has done nothing."""
    first = convert(case, "ours")
    then = convert(case, "again") if case.again else first
    return {f"first {kind}": first[kind] for kind in ("cpu", "wall")} | then


def convert(case: Case, target: str) -> dict[str, float]:
    """Convert all tiles as the flow does: some at a time, on threads."""
    storage = Storage(endpoint_url=case.endpoint_url)
    files, root = open_filesystem(case.root, storage)
    outputs = sorted(case.mapping.outputs)

    def one(number: int) -> int:
        folder = f"{root}/tiles/t{number}"
        delivered = TileFiles({name: f"{folder}/{name}.tif" for name in outputs}, f"{folder}/userdata.json")
        options = PatchOptions(file_format=case.file_format)
        return convert_tile(
            square(f"t{number}", case.pixels), delivered, files, files, f"{root}/{target}/eopatches/t{number}",
            mapping=case.mapping, options=options, provenance=PROVENANCE,
        ).bytes_written  # fmt: skip

    wall, cpu = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(case.at_once) as threads:
        size = sum(threads.map(one, range(case.tiles)))
    took = {"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu}
    return took | {"peak_mb": _peak_mb(), "bytes": size}


def _peak_mb() -> float:
    """The most memory that this process has had; `getrusage` would count what its parent had, too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def ours(case: Case) -> dict[str, float]:
    """Convert in a new process, so that its memory is that of this work; nothing is there to be replaced."""
    for target in ("ours", "again"):
        _forget(case, target)
    return _json_of([sys.executable, __file__, "--child"], asdict(case), {})


def eogrow(case: Case, python: Path) -> dict[str, float]:
    """Convert by eo-grow, into the same root."""
    _forget(case, "eogrow")
    return _json_of([str(python), str(HERE / "eogrow_conversion.py")], _eogrow_config(case), _s3_environment(case))


def _eogrow_config(case: Case) -> dict[str, Any]:
    mapping = [
        {"batch_files": [f"{output}.tif" for output in rule.outputs], "feature": [rule.feature_type, rule.name]}
        | ({"multiply_factor": rule.scale, "dtype": rule.dtype} if rule.scale != 1 else {})
        for rule in case.mapping.features
    ]
    structure = {"grids": "grids", "batch": "tiles", "eopatches": "eogrow"}
    manager = "eogrow.core"
    return {
        "pipeline": "eogrow.pipelines.batch_to_eopatch.BatchToEOPatchPipeline",
        "storage": {
            "manager": f"{manager}.storage.StorageManager", "project_folder": case.root, "structure": structure,
        },
        "area": {
            "manager": f"{manager}.area.CustomGridAreaManager", "grid_folder_key": "grids",
            "grid_filename": "grid.gpkg", "name_column": "identifier",
        },
        "logging": {"manager": f"{manager}.logging.LoggingManager", "save_logs": False, "show_logs": False},
        "input_folder_key": "batch", "output_folder_key": "eopatches",
        "userdata_timestamp_reader": "userdata['timestamps']",
        "mapping": mapping, "remove_batch_data": False,
    }  # fmt: skip


def _s3_environment(case: Case) -> dict[str, str]:
    if case.endpoint_url is None:
        return {}
    return {
        "AWS_ENDPOINT_URL": case.endpoint_url,
        "AWS_S3_ENDPOINT": case.endpoint_url.removeprefix("http://"),
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def _forget(case: Case, folder: str) -> None:
    """Remove what an earlier turn left: it takes a quarter of a second a tile."""
    files, root = open_filesystem(case.root, Storage(endpoint_url=case.endpoint_url))
    if files.exists(f"{root}/{folder}"):
        files.rm(f"{root}/{folder}", recursive=True)


def _json_of(command: Sequence[str], given: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, float]:
    done = subprocess.run(
        [command[0], "-W", "ignore", *command[1:]], input=json.dumps(given), env={**os.environ, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


# ---- the floor ----


class Floor:
    """The least that converting a tile can take, on all cores."""

    def __init__(self, tile: Path, patch: Path, file_format: str) -> None:
        self._paths = sorted(tile.glob("*.tif"))
        self._layouts = [read_layout(str(path), 0) for path in self._paths]
        self._contents = [path.read_bytes() for path in self._paths]
        self._arrays = [array for _, array in _arrays(patch)]
        self._whole_frames = file_format == "zarr"
        candidates = BLOSC if self._whole_frames else GZIP
        self._decode(_libdeflate)
        self._inflate = min((_libdeflate, _isal), key=lambda inflate: cpu_seconds(lambda: self._decode(inflate)))
        self._encoders = [_fastest(array, candidates) for array in self._arrays]

    def seconds(self) -> dict[str, float]:
        """Decode all blocks, then encode all arrays; the same with files besides."""
        wall, cpu = time.monotonic(), time.process_time()
        self._decode(self._inflate)
        self._encode()
        took = {"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu}
        with tempfile.TemporaryDirectory(dir=self._paths[0].parent) as folder:
            cpu = time.process_time()
            self._decode(self._inflate, from_files=True)
            self._encode(Path(folder))
            return took | {"cpu with files": time.process_time() - cpu}

    def _decode(self, inflate: Callable[[memoryview, NDArray[Any]], None], *, from_files: bool = False) -> None:
        def block(content: bytes, file: BinaryIO, layout: Layout, place: tuple[int, int]) -> None:
            stored = room((*layout.block, layout.samples), layout.dtype)
            coded = memoryview(content)[place[0] : sum(place)]
            if from_files:
                coded = memoryview(os.pread(file.fileno(), place[1], place[0]))
            inflate(coded, stored.reshape(-1).view(np.uint8))
            if layout.predictor == HORIZONTAL:
                imagecodecs.delta_decode(stored, axis=1, out=stored)

        with ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")) for path in self._paths]
            each = zip(self._contents, files, self._layouts, strict=True)
            _on_all_cores(block, [(*one, place) for one in each for place in one[-1].places])

    def _encode(self, folder: Path | None = None) -> None:
        for number, (array, encode) in enumerate(zip(self._arrays, self._encoders, strict=True)):
            source = ArraySource.of(array, temporal=True)

            def one(*part: int, number: int = number, made: Any = source.made, encode: Encoder = encode) -> None:
                coded = encode(made(*part))
                if folder is not None:  # a file for each chunk of zarr, one for all members of a gzip stream
                    path = folder / (f"{number}-{part[0]}" if self._whole_frames else f"{number}")
                    with path.open("ab", buffering=0) as file:
                        file.write(coded)

            _on_all_cores(one, source.frames() if self._whole_frames else source.parts())


def _on_all_cores(work: Callable[..., object], items: Iterator[tuple[Any, ...]] | Sequence[tuple[Any, ...]]) -> None:
    for future in [workers().submit(work, *item) for item in items]:
        future.result()


def _libdeflate(coded: memoryview, out: NDArray[Any]) -> None:
    imagecodecs.deflate_decode(coded, out=out)


def _isal(coded: memoryview, out: NDArray[Any]) -> None:
    isal_zlib.decompress(coded, bufsize=out.nbytes)


def _gzip(level: int) -> Encoder:
    return lambda part: igzip.compress(part.reshape(-1).view(np.uint8), level)


GZIP = tuple(_gzip(level) for level in (1, 2, 3))
"""ISA-L's: all other libraries take twice as long."""
BLOSC = tuple(
    partial(by_blosc, how=Blosc("lz4", clevel=level, shuffle=shuffle))
    for level in (1, 5)
    for shuffle in (Blosc.SHUFFLE, Blosc.BITSHUFFLE)
)
"""By imagecodecs, into memory that is kept: numcodecs itself takes longer."""


def _fastest(array: NDArray[Any], candidates: Sequence[Encoder]) -> Encoder:
    """Take the fastest on a sample among those whose files are not too large."""
    sample = [np.ascontiguousarray(frame[: len(frame) // 2]) for frame in array[:: max(1, len(array) // 4)]]
    limit = LARGEST_FILES * sum(len(_eolearns(part, zarr=candidates is BLOSC)) for part in sample)
    fits = [encode for encode in candidates if sum(len(encode(part)) for part in sample) <= limit]
    seconds = {
        encode: min(cpu_seconds(lambda e=encode: [e(part) for part in sample]) for _ in range(3)) for encode in fits
    }
    return min(fits, key=seconds.__getitem__)


def _eolearns(part: NDArray[Any], *, zarr: bool) -> bytes:
    return bytes(Blosc().encode(part)) if zarr else zlib.compress(part.tobytes(), 1)


def _arrays(patch: Path) -> list[tuple[str, NDArray[Any]]]:
    loaded = EOPatch.load(str(patch))
    return [(f"{kind.value}/{name}", loaded[kind, name]) for kind, name in loaded.get_features() if kind.is_array()]


# ---- the measurements ----


def put_tiles(root: Path, outputs: Mapping[str, NDArray[Any]], case: Case, layout: str, dates: int = 0) -> None:
    """Deliver the same tile under several names, and eo-grow's grid."""
    tile = square("t0", case.pixels)
    deliver(root / "tiles" / "t0", outputs, tile, *LAYOUTS[layout], dates)
    for number in range(1, case.tiles):
        shutil.copytree(root / "tiles" / "t0", root / "tiles" / f"t{number}", copy_function=os.link)
    (root / "grids").mkdir()
    names = [f"t{number}" for number in range(case.tiles)]
    grid = gpd.GeoDataFrame({"identifier": names}, geometry=[shapely.box(*tile.bounds)] * case.tiles, crs=tile.epsg)
    grid.to_file(root / "grids" / "grid.gpkg", engine="pyogrio")


def compare(case: Case, layout: str, local: Path, options: argparse.Namespace) -> None:
    """Print a line of the table: median (range) of the turns."""
    turns: dict[str, list[dict[str, float]]] = {"ours": [], "eo-grow": [], "floor": []}
    peer = not options.no_peer and case.file_format == "npy.gz"
    ours(case)  # warms the disk's cache, and gives the floor its arrays
    floor = None if case.endpoint_url else Floor(local / "tiles" / "t0", local / "ours/eopatches/t0", case.file_format)
    for _ in range(options.repeats):
        before = floor and floor.seconds()
        turns["ours"].append(ours(replace(case, again=True)))
        if floor and before:
            turns["floor"].append({kind: (before[kind] + took) / 2 for kind, took in floor.seconds().items()})
        if peer:
            turns["eo-grow"].append(eogrow(case, options.python))
    if peer and not case.endpoint_url:
        _assert_equal(local / "ours/eopatches/t0", local / "eogrow/t0")
    where = "S3" if case.endpoint_url else "disk"
    print(
        f"| {layout} | {case.dtype} | {case.file_format} | {where} |",
        *_columns(case, turns, local),
        sep=" ",
        flush=True,
    )


def _columns(case: Case, turns: Mapping[str, list[dict[str, float]]], local: Path) -> Iterator[str]:
    mine = {kind: [turn[kind] for turn in turns["ours"]] for kind in ("cpu", "wall", "first cpu", "first wall")}
    yield f"{spread([value / case.tiles for value in mine['cpu']], 2)} |"
    for kind, floor_kind in (("cpu", "cpu"), ("cpu", "cpu with files"), ("wall", "wall")):
        floor = [turn[floor_kind] * case.tiles for turn in turns["floor"]]
        yield f"{spread(ratios(mine[kind], floor), 2) if floor else '-'} |"
    for kind in ("cpu", "wall"):
        peer = [turn[kind] for turn in turns["eo-grow"]]
        yield f"{spread(ratios(peer, mine[f'first {kind}']), 2) if peer else '-'} |"
    yield f"{spread([turn['peak_mb'] for turn in turns['ours']])} |"
    yield f"{spread([turn['peak_mb'] for turn in turns['eo-grow']]) if turns['eo-grow'] else '-'} |"
    same = turns["eo-grow"] and not case.endpoint_url
    yield f"{_bytes(local / 'ours/eopatches/t0') / _bytes(local / 'eogrow/t0'):.2f} |" if same else "- |"


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _assert_equal(mine: Path, theirs: Path) -> None:
    expected = dict(_arrays(theirs))
    for name, array in _arrays(mine):
        assert array.dtype == expected[name].dtype, name
        assert np.array_equal(array, expected[name]), name


@contextmanager
def on_s3(local: Path, case: Case) -> Iterator[Case]:
    """The same files on an S3 server."""
    with tempfile.TemporaryDirectory() as folder, SeaweedFS(Path(folder), "key", "secret-key") as server:
        moved = replace(case, root="s3://bench/project", endpoint_url=server.endpoint_url)
        os.environ |= {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
        files, root = open_filesystem(moved.root, Storage(endpoint_url=server.endpoint_url))
        files.mkdir("bench")
        for part in ("tiles", "grids"):
            files.put(str(local / part), f"{root}/{part}", recursive=True)
        yield moved


def growth(options: argparse.Namespace) -> None:
    """Print the cost of a tile of 250 x 250 pixels where there are 10, 100 and 1,000 of them."""
    outputs = numbers(250, 24)
    for count in (10, 100, 1000):
        with tempfile.TemporaryDirectory() as folder:
            case = Case(folder, count, 250, "float32", "npy.gz")
            put_tiles(Path(folder), outputs, case, "256PIXEL")
            found = [ours(case) for _ in range(options.repeats if count < 1000 else 1)]
            cost = spread([1000 * turn["cpu"] / count for turn in found], 1)
            print(
                f"| {count} tiles | {cost} CPU ms a tile | {spread([turn['peak_mb'] for turn in found])} MB |",
                flush=True,
            )


def large(options: argparse.Namespace) -> None:
    """Print time and memory of one tile of 20 km and a year's 73 dates; the files take 5 GB."""
    pixels, dates = 2004, 73
    few = numbers(pixels, 2)
    for layout in options.layouts:
        with tempfile.TemporaryDirectory() as folder:
            case = Case(folder, 1, pixels, "float32", "npy.gz")
            put_tiles(Path(folder), few, case, layout, dates)
            for file_format in options.formats:
                took = {key: round(value) for key, value in ours(replace(case, file_format=file_format)).items()}
                print(
                    f"| {layout} | {file_format} | {took['cpu']} CPU s | {took['wall']} s | {took['peak_mb']} MB |",
                    flush=True,
                )


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "uint16"), default=["float32", "uint16"])
    parser.add_argument("--formats", nargs="+", choices=("npy.gz", "zarr"), default=["npy.gz", "zarr"])
    parser.add_argument("--tiles", type=int, default=4)
    parser.add_argument("--pixels", type=int, default=1000)
    parser.add_argument("--dates", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path, help="keep the delivered tiles there, for the next run")
    for flag in ("--s3", "--no-peer", "--growth", "--large", "--child"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measured(Case(**json.load(sys.stdin)))))
        return
    print(machine())
    if options.growth:
        growth(options)
    elif options.large:
        large(options)
    else:
        table(options)


def table(options: argparse.Namespace) -> None:
    """Print the table of all combinations."""
    sys.path.insert(0, str(HERE.parent))
    from tests.localhub.clients.environment import built_environment  # noqa: PLC0415 - the path is made just before

    options.python = None if options.no_peer else built_environment(HERE.parent / ".venv-eogrow") / "python"
    print(
        "| files | result | format | where | CPU s a tile | CPU / floor | CPU / floor and files | wall / floor "
        "| eo-grow CPU / ours | eo-grow wall / ours | peak MB | eo-grow's peak MB | size / eo-learn's |"
    )
    for layout in options.layouts:
        with delivered_tiles(options, layout) as folder:
            for dtype in options.dtypes:
                for file_format in options.formats:
                    case = Case(str(folder), options.tiles, options.pixels, dtype, file_format)
                    compare(case, layout, folder, options)
                    if options.s3:
                        with on_s3(folder, case) as moved:
                            compare(moved, layout, folder, options)


@contextmanager
def delivered_tiles(options: argparse.Namespace, layout: str) -> Iterator[Path]:
    """A folder with the tiles: new, or kept from an earlier run."""
    with tempfile.TemporaryDirectory() as temporary:
        base = options.data or Path(temporary)
        folder = base / f"{layout}-{options.tiles}x{options.pixels}x{options.dates}"
        if not folder.exists():
            plain = Case(str(folder), options.tiles, options.pixels, "", "")
            put_tiles(folder, numbers(options.pixels, options.dates), plain, layout)
        yield folder


if __name__ == "__main__":
    main()
