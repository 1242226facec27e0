from pathlib import Path

import numpy as np
import pytest
from eolearn.core import EOPatch
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from prefect import flow
from prefect.artifacts import Artifact
from sentinelhub import CRS, BBox
from shapely import box

from tasks.grid import tiles_of_grid
from tasks.ledger import TileRecord, TileState
from tasks.report import (
    Plan,
    SummaryReport,
    TilePlan,
    publish_plan,
    publish_summary,
    publish_tiles,
    quicklook,
    quicklook_of,
    status_map,
)

RECORDS = [TileRecord(tile, TileState.LABELLED) for tile in tiles_of_grid(box(14.4, 46, 14.6, 46.1), 4326, 1, 20)]


@pytest.mark.usefixtures("prefect_server")
def test_artifacts_can_be_found_by_the_key_of_area_and_subject() -> None:
    @flow
    def run() -> None:
        publish_plan("area-2019", Plan("Area", TileState.LABELLED, [], ["B02"], tuple(map(TilePlan, RECORDS))))
        publish_tiles("area-2019", "Area", RECORDS, status_map(RECORDS, None, "Area"))
        publish_summary("area-2019", SummaryReport("Area", RECORDS, TileState.LABELLED, "Nothing was bought.", 1, {}))

    run()
    found = {what: Artifact.get(f"area-2019-{what}") for what in ("plan", "plan-tiles", "map", "tiles", "summary")}
    assert {what: artifact and artifact.type for what, artifact in found.items()} == {
        "plan": "markdown",
        "plan-tiles": "table",
        "map": "markdown",
        "tiles": "table",
        "summary": "markdown",
    }


@pytest.fixture
def patch() -> EOPatch:
    patch = EOPatch(bbox=BBox((460_000, 5_090_000, 461_000, 5_091_000), CRS.UTM_33N), timestamps=["2019-07-01"])
    patch.data["BANDS"] = np.random.default_rng(1).uniform(0.01, 0.4, (1, 50, 50, 6))
    patch.data["NDVI"] = np.full((1, 50, 50, 1), 0.5)
    patch.mask["IS_VALID"] = np.ones((1, 50, 50, 1), bool)
    patch.mask_timeless["LULC"] = np.full((50, 50, 1), 2, "uint8")
    return patch


@pytest.mark.parametrize("use_zarr", [False, True])
def test_a_stored_patch_is_drawn_like_the_one_in_memory(tmp_path: Path, patch: EOPatch, use_zarr: bool) -> None:
    patch.save(str(tmp_path / "eopatch_x"), use_zarr=use_zarr)
    remote = MemoryFileSystem()
    remote.put(str(tmp_path / "eopatch_x"), f"/{tmp_path.name}/eopatch_x", recursive=True)
    expected = quicklook(patch, "x")
    assert quicklook_of(LocalFileSystem(), str(tmp_path / "eopatch_x"), "x") == expected
    assert quicklook_of(remote, f"/{tmp_path.name}/eopatch_x", "x") == expected
