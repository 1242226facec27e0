import base64
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from eolearn.core import EOPatch
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from prefect import flow
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from sentinelhub import CRS, BBox
from shapely import box

from tasks.grid import tiles_of_grid
from tasks.ledger import TileRecord, TileState
from tasks.report import (
    Board,
    Plan,
    SummaryReport,
    TilePlan,
    publish_plan,
    quicklook,
    quicklook_of,
    status_map,
)
from tasks.report.pictures import thumbnail
from tasks.report.publish import EMBEDDED_LETTERS
from tasks.report.texts import data_uri, within

RECORDS = [TileRecord(tile, TileState.LABELLED) for tile in tiles_of_grid(box(14.4, 46, 14.6, 46.1), 4326, 1, 20)]

KEYS = ("plan", "plan-tiles", "progress", "map", "tiles", "summary")


@pytest.mark.usefixtures("prefect_server")
def test_artifacts_can_be_found_by_the_key_of_area_and_subject() -> None:
    @flow
    def run() -> None:
        publish_plan("Área", Plan("Area", TileState.LABELLED, [], ["B02"], tuple(map(TilePlan, RECORDS))))
        board = Board("Área")
        board.progress(50, "half")
        board.tiles("Area", RECORDS, status_map(RECORDS, None, "Area"))
        board.summary(SummaryReport("Area", RECORDS, TileState.LABELLED, "Nothing was bought.", 1, {}), {})

    run()
    found = {what: Artifact.get(f"area-{what}") for what in KEYS}
    assert {what: artifact and artifact.type for what, artifact in found.items()} == {
        "progress": "progress",
        "plan": "markdown",
        "plan-tiles": "table",
        "map": "markdown",
        "tiles": "table",
        "summary": "markdown",
    }
    texts = {what: str(artifact.data) for what, artifact in found.items() if artifact}
    assert texts["summary"].startswith("# Summary: Area\n\n**")
    assert texts["map"].startswith("# Tiles: Area\n\nlabelled")
    assert [row["tile"] for row in json.loads(texts["tiles"])] == [record.tile.name for record in RECORDS]


@pytest.mark.usefixtures("prefect_server")
def test_artifacts_of_one_run_are_renewed_and_those_of_the_next_run_are_their_history() -> None:
    @flow
    def run(percent: float) -> None:
        board = Board("renewed")
        for share in (0.0, percent):
            board.progress(share, f"{share:g} %")
            board.tiles(f"at {share:g} %", RECORDS, b"png")

    run(40)
    run(100)
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["renewed-progress"])))
        tables = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["renewed-map"])))
    assert sorted((one.data, one.description) for one in found) == [(40, "40 %"), (100, "100 %")]
    assert sorted(one.description for one in tables) == ["at 100 %", "at 40 %"]


def test_pictures_in_a_summary_are_small_and_bounded() -> None:
    noise = np.random.default_rng(1).integers(0, 255, (1200, 1500, 3), np.uint8)
    buffer = BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    uri = data_uri(thumbnail(buffer.getvalue()), "jpeg")
    with Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))) as small:
        assert small.size == (720, 576)
    kept = within(dict.fromkeys(map(str, range(1000)), uri), EMBEDDED_LETTERS)
    assert 1 <= len(kept) < 20
    assert sum(map(len, kept.values())) <= EMBEDDED_LETTERS


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
