"""Kill -9 at every step, and run again: one request, every tile once, nothing half-written is taken for whole.

Each run of a chain is killed one step later than the one before, and the last one is left alone: what one kill leaves
is what the next run finds.
"""

import gzip
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import s3fs
from eolearn.core import EOPatch
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from prefect.settings import PREFECT_API_URL

from flows.conclusion import Summary
from flows.parameters import LandCover
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from tasks.ledger import TileState, read_ledger
from tests.flows.killing import LONGEST_SECONDS, KillingProxy, Request, kill_when, started
from tests.flows.tables import show
from tests.flows.test_land_cover import SLUG, requests_of, run
from tests.localhub.watching import faults

pytestmark = pytest.mark.usefixtures("prefect_server")

CREATE, START = r"/batch/process$", r"/batch/process/[^/]+/start$"
DATABASE, TILE_FILE = r"/execution-[^/]+\.sqlite", r"/tiles/[^/]+/t\d/[^/]+\.(tif|json)"
TILES = ("t0", "t1", "t2", "t3")
STEPS = (
    ("before create", Request("POST", CREATE)),
    ("create executed, not answered", Request("POST", CREATE, executed=True)),
    ("start executed, not answered", Request("POST", START, executed=True)),
)


@dataclass(frozen=True)
class Point:
    """Where a run is killed: at a request to the service or to the store, or at a state of the local disk."""

    name: str
    service: Request | None = None
    store: Request | None = None
    disk: Callable[[Path], bool] | None = None


@dataclass(frozen=True)
class Found:
    """What lies at the destination: when each marker was written, by its path, and what is not whole."""

    converted: dict[str, str]
    labelled: dict[str, str]
    half_written: int

    @property
    def kept(self) -> dict[str, str]:
        return self.converted | self.labelled


@dataclass(frozen=True)
class World:
    """What the runs of a chain have in common: parameters, the proxies that they see, and the destination."""

    parameters: LandCover
    service: KillingProxy
    store: KillingProxy
    files: AbstractFileSystem

    @property
    def folder(self) -> str:
        return f"{self.parameters.storage.destination.removeprefix('s3://')}/{SLUG}"

    def found(self) -> Found:
        infos = self.files.find(self.folder, detail=True) if self.files.exists(self.folder) else {}
        stamps = {path: str(info.get("ETag") or info.get("mtime")) for path, info in infos.items()}
        patches = {path.rpartition("/")[0].rpartition("/")[0] for path in stamps if "/eopatches/" in path}
        converted, labelled = _markers(stamps, "BATCH"), _markers(stamps, "REFERENCE")
        staging = {part for path in stamps for part in path.split("/") if ".staging-" in part}
        whole = {path.removesuffix("/meta_info/BATCH.json.gz") for path in converted}
        torn = {patch for patch in patches if "/eopatch_" in patch} - whole
        return Found(converted, labelled, len(staging) + len(torn))

    def run(self, folder: Path, environment: dict[str, str], point: Point | None) -> str:
        """Run once, killed at the point; what the run has said."""
        with started(self.parameters, folder, environment) as process:
            if point is None:
                process.wait(timeout=LONGEST_SECONDS)
            elif point.disk is not None:
                state, place = point.disk, Path(self.folder)
                kill_when(process, lambda: state(place))
            else:
                proxy, request = (self.service, point.service) if point.service else (self.store, point.store)
                assert request is not None
                with proxy.killing(request, process.kill):
                    process.wait(timeout=LONGEST_SECONDS)
            code = process.wait(timeout=10)
        said = (folder / "output.txt").read_text()
        assert code == (0 if point is None else -9), f"{point}: {said}"
        return said


def _markers(stamps: dict[str, str], name: str) -> dict[str, str]:
    """Markers of EOPatches; those in folders that are no result yet do not count."""
    place = re.compile(rf"/eopatches/[^/]+/meta_info/{name}\.json\.gz$")
    return {path: stamp for path, stamp in stamps.items() if place.search(path)}


@pytest.fixture
def proxies(small_hub: LocalHub, s3: SeaweedFS) -> Iterator[tuple[KillingProxy, KillingProxy]]:
    """Before localhub, and before the S3 server."""
    with KillingProxy(small_hub.base_url) as service, KillingProxy(s3.endpoint_url) as store:
        yield service, store


def test_a_run_that_is_killed_anywhere_is_taken_up_in_the_same_place(
    parameters: LandCover,
    small_hub: LocalHub,
    proxies: tuple[KillingProxy, KillingProxy],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    world = World(through(parameters, *proxies), *proxies, LocalFileSystem())
    points = (
        *(Point(name, service=step) for name, step in STEPS),
        Point("while polling", store=Request("GET", DATABASE)),
        Point("between tiles", store=Request("GET", TILE_FILE, when=lambda: len(world.found().converted) > 0)),
        Point("in a conversion to local disk", disk=lambda folder: has_staged(folder, "data/*")),
        Point("in a reference raster", disk=lambda folder: has_staged(folder, "mask_timeless/LULC.*")),
        Point("before the summary", disk=has_only_pictures),
    )
    folder, environment = tmp_path / "runs", {"PREFECT_API_URL": str(PREFECT_API_URL.value())}
    with faults(small_hub, tile_seconds=1):
        rows = chain(world, points, lambda: (folder, environment))
    show(request.config, "Killed, and run again in the same place; results on a local disk", HEADER, rows)
    check_end(world, parameters, small_hub, tmp_path)
    assert sorted(path.name for path in Path(world.folder).iterdir()) == [
        ".lease.json.lock", "eopatches", "lease.json", "ledger.gpkg", "report",
    ]  # fmt: skip


def test_a_run_that_is_killed_anywhere_is_taken_up_from_an_empty_machine_with_an_empty_prefect(
    parameters: LandCover,
    small_hub: LocalHub,
    proxies: tuple[KillingProxy, KillingProxy],
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    prefect_home: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    asked = changed(through(parameters, *proxies), storage={"destination": f"s3://{bucket}/eopatches"})
    world = World(asked, *proxies, s3_files)
    points = (
        *(Point(name, service=step) for name, step in STEPS),
        Point("while polling", store=Request("GET", DATABASE)),
        Point("between tiles", store=Request("GET", TILE_FILE, when=lambda: len(world.found().converted) > 0)),
        Point("in a conversion to S3", store=Request("PUT", r"/mask/IS_DATA\.npy\.gz")),
        Point("in a reference raster on S3", store=Request("PUT", r"/LULC\.npy\.gz", executed=True)),
        Point("before the summary", store=Request("PUT", r"/report/tiles\.png")),
    )
    machines = (tmp_path / "machines" / str(number) for number in count())

    def empty_machine() -> tuple[Path, dict[str, str]]:
        machine = next(machines)
        shutil.copytree(prefect_home, machine / "prefect")
        home = {"HOME": str(machine), "PREFECT_HOME": str(machine / "prefect"), "PREFECT_API_URL": ""}
        return machine / "work", home | {"TMPDIR": str(_made(machine / "tmp"))}

    with faults(small_hub, tile_seconds=1):
        rows = chain(world, points, empty_machine)
    title = "Killed, and run again from an empty machine with an empty Prefect database; results on S3"
    show(request.config, title, HEADER, rows)
    check_end(world, parameters, small_hub, tmp_path)


def test_damage_and_other_mappings_and_scripts_are_noticed_by_the_next_run(parameters: LandCover) -> None:
    run(parameters)
    patches = Path(parameters.storage.destination) / SLUG / "eopatches"
    whole = {tile: EOPatch.load(str(patches / f"eopatch_{tile}")) for tile in TILES}
    truncated = patches / "eopatch_t0/data/BANDS.npy.gz"
    truncated.write_bytes(truncated.read_bytes()[:-20])
    (patches / "eopatch_t1/data/NDVI.npy.gz").unlink()
    (patches / "eopatch_t2/mask_timeless/LULC.npy.gz").unlink()
    assert counts(run(parameters)) == (False, 2, 3)
    for tile, before in whole.items():
        assert_same(EOPatch.load(str(patches / f"eopatch_{tile}")), before)
    other_mapping = changed(parameters, patches={"band_dtype": "uint16"})
    assert counts(run(other_mapping)) == (False, 4, 4)
    indices = {**other_mapping.imagery.indices, "NDBI": ("B12", "B08")}
    other_script = changed(other_mapping, imagery={"indices": indices})
    assert counts(run(other_script)) == (True, 4, 4)


HEADER = ("Killed", "requests", "EOPatches", "labels", "half-written", "what earlier runs made")
Row = tuple[str, int, int, int, int, str]


def chain(world: World, points: tuple[Point, ...], machine: Callable[[], tuple[Path, dict[str, str]]]) -> list[Row]:
    """Run, killed at each point in turn, and once more to the end; `machine` gives working folder and environment."""
    rows: list[Row] = []
    before = Found({}, {}, 0)
    for point in (*points, None):
        said = world.run(*machine(), point)
        after, requests = world.found(), len(requests_of(world.parameters))
        same = all(after.kept.get(path) == stamp for path, stamp in before.kept.items())
        name = point.name if point else f"not; {_counted(said)}"
        kept = "as it was" if same else "written again"
        rows.append((name, requests, len(after.converted), len(after.labelled), after.half_written, kept))
        assert same, rows
        assert requests == (0 if name == "before create" else 1), rows
        if point is None:
            new = len(after.converted) - len(before.converted), len(after.labelled) - len(before.labelled)
            assert _counted(said) == f"{new[0]} converted, {new[1]} labelled", said
        before = after
    assert rows[-1][1:] == (1, 4, 4, 0, "as it was"), rows
    return rows


def _counted(said: str) -> str:
    """What a run has done, as it says itself."""
    found = re.search(r"\d+ converted, \d+ labelled", said)
    return found.group() if found else said


def check_end(world: World, parameters: LandCover, hub: LocalHub, folder: Path) -> None:
    """Compare what the chain has left with a run that nobody has disturbed."""
    (folder / "ledger.gpkg").write_bytes(world.files.cat_file(f"{world.folder}/ledger.gpkg"))
    assert [record.state for record in read_ledger(folder / "ledger.gpkg")] == [TileState.LABELLED] * 4
    assert json.loads(world.files.cat_file(f"{world.folder}/lease.json"))["released"]
    storage = {"tiles_url": f"{parameters.storage.tiles_url}-undisturbed", "destination": str(folder / "undisturbed")}
    run(changed(parameters, service={"base_url": hub.base_url}, storage=storage))
    for tile in TILES:
        place = folder / "copies" / tile
        world.files.get(f"{world.folder}/eopatches/eopatch_{tile}", str(place), recursive=True)
        marker = json.loads(gzip.decompress((place / "meta_info/BATCH.json.gz").read_bytes()))
        assert marker["tile"] == tile
        wanted = EOPatch.load(str(folder / f"undisturbed/{SLUG}/eopatches/eopatch_{tile}"))
        assert_same(EOPatch.load(str(place)), wanted)


def assert_same(one: EOPatch, other: EOPatch) -> None:
    assert one.get_features() == other.get_features()
    assert one.timestamps == other.timestamps
    assert one.bbox == other.bbox
    for feature in one.get_features():
        if feature[0].is_array():
            np.testing.assert_array_equal(one[feature], other[feature])


def counts(summary: Summary) -> tuple[bool, int, int]:
    """Whether a run has bought, and how many tiles it has converted and labelled; all tiles are complete."""
    assert [record.state for record in summary.records] == [TileState.LABELLED] * 4
    return summary.bought, summary.converted, summary.labelled


def has_staged(folder: Path, feature: str) -> bool:
    return any(folder.glob(f".eopatch_*.staging-*/patch/{feature}"))


def has_only_pictures(folder: Path) -> bool:
    report = folder / "report"
    return any(report.glob("quicklooks/*.png")) and not (report / "summary.md").exists()


def through(parameters: LandCover, service: KillingProxy, store: KillingProxy) -> LandCover:
    """The same work, seen through proxies, one tile at a time."""
    return changed(
        parameters,
        service={"base_url": service.base_url},
        storage={"endpoint_url": store.base_url},
        run={"tiles_at_once": 1, "poll_seconds": 1, "patience_minutes": 5, "quicklooks": 1},
    )


def changed(parameters: LandCover, **changes: dict[str, object]) -> LandCover:
    content = parameters.model_dump(mode="json")
    return LandCover.model_validate(content | {part: content[part] | change for part, change in changes.items()})


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
