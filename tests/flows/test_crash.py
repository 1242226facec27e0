"""Kill -9 at every step, and run again: one request, every tile once, nothing half-written is taken for whole.

Each run of a chain is killed one step later than the one before, and the last one is left alone, so that each kill's
leftovers are what the next run finds.
"""

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import s3fs
from eolearn.core import EOPatch
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from prefect.settings import PREFECT_API_URL

from flows.conclusion import Summary
from flows.land_cover import land_cover
from flows.parameters import LandCover
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from tasks.ledger import TileState, read_ledger
from tests.flows.killing import LONGEST_SECONDS, KillingProxy, Request, kill_group, kill_when, started
from tests.flows.test_land_cover import SLUG, requests_of
from tests.localhub.watching import faults

pytestmark = pytest.mark.usefixtures("prefect_server")

CREATE, START = r"/batch/process$", r"/batch/process/[^/]+/start$"
DATABASE, TILE_FILE = r"/execution-[^/]+\.sqlite", r"/tiles/[^/]+/t\d/[^/]+\.(tif|json)"
TILES = ("t0", "t1", "t2", "t3")


@dataclass(frozen=True)
class Point:
    """Where a run is killed: at a request to the service or to the store, or at a state of the local disk."""

    name: str
    service: Request | None = None
    store: Request | None = None
    disk: Callable[[Path], bool] | None = None


@dataclass(frozen=True)
class Found:
    """What lies at the destination: when each marker was written, by its path, and folders that are no result."""

    converted: dict[str, str]
    labelled: dict[str, str]
    staging: int

    @property
    def kept(self) -> dict[str, str]:
        return self.converted | self.labelled


class World:
    """The destination of a chain, and the two proxies that its runs see."""

    def __init__(self, parameters: LandCover, service: KillingProxy, store: KillingProxy, s3: SeaweedFS) -> None:
        self.service, self.store = service, store
        self.parameters = changed(
            parameters,
            service={"base_url": service.base_url},
            storage={"endpoint_url": store.base_url},
            run={"tiles_at_once": 1, "poll_seconds": 1, "patience_minutes": 5},
        )
        self.files: AbstractFileSystem = LocalFileSystem()
        if parameters.storage.destination.startswith("s3://"):
            self.files = _s3_files(s3)
        self.folder = f"{parameters.storage.destination.removeprefix('s3://')}/{SLUG}"

    def found(self) -> Found:
        self.files.invalidate_cache()
        infos = self.files.find(self.folder, detail=True) if self.files.exists(self.folder) else {}
        stamps = {path: str(info.get("ETag") or info.get("mtime")) for path, info in infos.items()}
        return Found(
            converted={path: stamp for path, stamp in stamps.items() if path.endswith("/meta_info/BATCH.json.gz")},
            labelled={path: stamp for path, stamp in stamps.items() if path.endswith("/meta_info/REFERENCE.json.gz")},
            staging=len({part for path in stamps for part in path.split("/") if ".staging-" in part}),
        )

    def run(self, folder: Path, environment: dict[str, str], point: Point | None = None) -> str:
        """Run once, killed at the point; what the run has said."""
        with started(self.parameters, folder, environment) as process:
            if point is None:
                process.wait(timeout=LONGEST_SECONDS)
            else:
                self._kill_at(point, process)
            code = process.wait(timeout=10)
        said = (folder / "output.txt").read_text()
        assert code == (0 if point is None else -9), f"{point}: {said}"
        return said

    def _kill_at(self, point: Point, process: subprocess.Popen[bytes]) -> None:
        if point.disk is not None:
            state, folder = point.disk, Path(self.folder)
            kill_when(process, lambda: state(folder))
            return
        proxy, request = (self.service, point.service) if point.service else (self.store, point.store)
        assert request is not None
        with proxy.killing(request, lambda: kill_group(process)):
            process.wait(timeout=LONGEST_SECONDS)


@pytest.fixture
def proxies(small_hub: LocalHub, s3: SeaweedFS) -> Iterator[tuple[KillingProxy, KillingProxy]]:
    """Before localhub, and before the S3 server."""
    with KillingProxy(small_hub.base_url) as service, KillingProxy(s3.endpoint_url) as store:
        yield service, store


def test_a_run_that_is_killed_anywhere_is_taken_up_in_the_same_place(
    parameters: LandCover,
    small_hub: LocalHub,
    proxies: tuple[KillingProxy, KillingProxy],
    s3: SeaweedFS,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world = World(parameters, *proxies, s3)
    points = (
        Point("before create", service=Request("POST", CREATE)),
        Point("create executed, not answered", service=Request("POST", CREATE, executed=True)),
        Point("start executed, not answered", service=Request("POST", START, executed=True)),
        Point("while polling", store=Request("GET", DATABASE)),
        Point("between tiles", store=Request("GET", TILE_FILE, when=lambda: len(world.found().converted) > 0)),
        Point("in a conversion to local disk", disk=lambda folder: has_staged(folder, "data")),
        Point("in a reference raster", disk=lambda folder: has_staged(folder, "mask_timeless")),
        Point("before the summary", disk=has_only_pictures),
    )
    environment = {"PREFECT_API_URL": str(PREFECT_API_URL.value())}
    with faults(small_hub, tile_seconds=1):
        rows = chain(world, points, lambda _: environment, tmp_path / "runs")
    show(capsys, "Killed and run again in the same place, results on a local disk", rows)
    check_end(world, small_hub, parameters, tmp_path)
    assert sorted(path.name for path in Path(world.folder).iterdir()) == [
        ".lease.json.lock", "eopatches", "lease.json", "ledger.gpkg", "report",
    ]  # fmt: skip


def test_a_run_that_is_killed_is_taken_up_from_an_empty_machine_with_an_empty_prefect(
    parameters: LandCover,
    small_hub: LocalHub,
    proxies: tuple[KillingProxy, KillingProxy],
    s3: SeaweedFS,
    bucket: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world = World(changed(parameters, storage={"destination": f"s3://{bucket}/eopatches"}), *proxies, s3)
    points = (
        Point("start executed, not answered", service=Request("POST", START, executed=True)),
        Point("in a conversion to S3", store=Request("PUT", r"/mask/IS_DATA\.npy\.gz")),
        Point("in a reference raster on S3", store=Request("PUT", r"/LULC\.npy\.gz", executed=True)),
        Point("before the summary", store=Request("PUT", r"/report/tiles\.png")),
    )
    homes = (tmp_path / "homes" / str(number) for number in range(9))
    rows = chain(world, points, lambda _: {"PREFECT_HOME": str(next(homes))}, tmp_path / "runs")
    show(capsys, "Killed and run again from an empty machine with an empty Prefect database, results on S3", rows)
    check_end(world, small_hub, parameters, tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "feature missing", "labels missing", "mapping", "script"])
def test_damage_and_changes_are_noticed_by_the_next_run(parameters: LandCover, damage: str) -> None:
    run(parameters)
    patch = Path(parameters.storage.destination) / SLUG / "eopatches/eopatch_t1"
    bands, before = patch / "data/BANDS.npy.gz", EOPatch.load(str(patch))
    match damage:
        case "truncated":
            bands.write_bytes(bands.read_bytes()[:-20])
        case "feature missing":
            bands.unlink()
        case "labels missing":
            (patch / "mask_timeless/LULC.npy.gz").unlink()
        case "mapping":
            parameters = changed(parameters, patches={"band_dtype": "uint16"})
        case "script":
            parameters = changed(parameters, imagery={"max_cloud_coverage": 79})
    summary = run(parameters)
    expected = {"labels missing": (False, 0, 1), "mapping": (False, 4, 4), "script": (True, 4, 4)}
    assert (summary.bought, summary.converted, summary.labelled) == expected.get(damage, (False, 1, 1))
    assert [record.state for record in summary.records] == [TileState.LABELLED] * 4
    if damage in {"truncated", "feature missing", "labels missing"}:
        assert_same(EOPatch.load(str(patch)), before)


Row = tuple[str, int, int, int, int, str]
"""Point, requests, EOPatches, labels, half-written folders after the kill; what the run has done to earlier results."""


def chain(
    world: World, points: tuple[Point, ...], environment: Callable[[Point | None], dict[str, str]], folder: Path
) -> list[Row]:
    """Run, killed at each point in turn, and once more to the end."""
    rows: list[Row] = []
    before = Found({}, {}, 0)
    for number, point in enumerate((*points, None)):
        said = world.run(folder / str(number), environment(point), point)
        after, requests = world.found(), len(requests_of(world.parameters))
        same = all(after.kept.get(path) == stamp for path, stamp in before.kept.items())
        end = re.search(r"\d+ converted, \d+ labelled", said) if point is None else None
        rows.append(
            (
                point.name if point else f"none: {end.group() if end else said}",
                requests,
                len(after.converted),
                len(after.labelled),
                after.staging,
                "kept" if same else "written again",
            )
        )
        assert same, rows
        assert requests == (0 if point is points[0] and point.name == "before create" else 1), rows
        if point is None:
            new = len(after.converted) - len(before.converted), len(after.labelled) - len(before.labelled)
            assert end is not None, said
            assert end.group() == f"{new[0]} converted, {new[1]} labelled"
        before = after
    return rows


def check_end(world: World, hub: LocalHub, parameters: LandCover, folder: Path) -> None:
    """Compare what the chain has left with a run that nobody has disturbed."""
    content = world.files.cat_file(f"{world.folder}/ledger.gpkg")
    (folder / "ledger.gpkg").write_bytes(content)
    assert [record.state for record in read_ledger(folder / "ledger.gpkg")] == [TileState.LABELLED] * 4
    assert len(requests_of(world.parameters)) == 1
    lease = json.loads(world.files.cat_file(f"{world.folder}/lease.json"))
    assert lease["released"]
    storage = {"tiles_url": f"{parameters.storage.tiles_url}-undisturbed", "destination": str(folder / "undisturbed")}
    run(changed(parameters, service={"base_url": hub.base_url}, storage=storage))
    for tile in TILES:
        place = folder / "copies" / tile
        world.files.get(f"{world.folder}/eopatches/eopatch_{tile}", str(place), recursive=True)
        marker = json.loads(gzip.decompress((place / "meta_info/BATCH.json.gz").read_bytes()))
        assert marker["tile"] == tile
        assert_same(
            EOPatch.load(str(place)), EOPatch.load(str(folder / f"undisturbed/{SLUG}/eopatches/eopatch_{tile}"))
        )


def assert_same(one: EOPatch, other: EOPatch) -> None:
    assert one.get_features() == other.get_features()
    assert one.timestamps == other.timestamps
    assert one.bbox == other.bbox
    for feature in one.get_features():
        if feature[0].is_array():
            np.testing.assert_array_equal(one[feature], other[feature])


def has_staged(folder: Path, feature_type: str) -> bool:
    return any(folder.glob(f".eopatch_*.staging-*/patch/{feature_type}/*"))


def has_only_pictures(folder: Path) -> bool:
    report = folder / "report"
    return any(report.glob("quicklooks/*.png")) and not (report / "summary.md").exists()


def show(capsys: pytest.CaptureFixture[str], title: str, rows: list[Row]) -> None:
    width = max(len(row[0]) for row in rows)
    lines = [f"\n\n{title}", f"{'killed':{width}}  requests  EOPatches  labels  half-written  earlier results"]
    lines += [f"{row[0]:{width}}  {row[1]:8}  {row[2]:9}  {row[3]:6}  {row[4]:12}  {row[5]}" for row in rows]
    with capsys.disabled():
        sys.stdout.write("\n".join(lines) + "\n")


def run(parameters: LandCover) -> Summary:
    summary = land_cover(**{name: getattr(parameters, name) for name in LandCover.model_fields})
    assert isinstance(summary, Summary)
    return summary


def changed(parameters: LandCover, **changes: dict[str, object]) -> LandCover:
    content = parameters.model_dump(mode="json")
    return LandCover.model_validate(content | {part: content[part] | change for part, change in changes.items()})


def _s3_files(s3: SeaweedFS) -> s3fs.S3FileSystem:
    client = {"endpoint_url": s3.endpoint_url}
    return s3fs.S3FileSystem(key=s3.access_key, secret=s3.secret_key, client_kwargs=client, use_listings_cache=False)
