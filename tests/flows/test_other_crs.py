"""The flow over tiles that lie in no UTM zone."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from eolearn.core import EOPatch
from pyproj import Transformer

from flows.land_cover import land_cover
from flows.parameters import LandCover
from tasks.ledger import TileState, read_ledger
from tasks.plan import Tiling
from tests.flows.conftest import EXTENT

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_tiles_in_laea_and_in_degrees_become_labelled_eopatches(pictured: LandCover, tmp_path: Path) -> None:
    centre = (EXTENT.west + EXTENT.size_m / 2, EXTENT.north - EXTENT.size_m / 2)
    path = tmp_path / "tiles.gpkg"
    bounds = {}
    for number, (epsg, size, resolution) in enumerate([(3035, 1200.0, 20.0), (4326, 0.012, 0.0002)]):
        x, y = Transformer.from_crs(32633, epsg, always_xy=True).transform(*centre)
        bounds[epsg] = (x, y, x + size, y + size)
        columns = {"identifier": [f"in-{epsg}"], "resolution": [resolution]}
        table = gpd.GeoDataFrame(columns, geometry=[shapely.box(*bounds[epsg])], crs=epsg)
        table.to_file(path, layer=f"t{number}", engine="pyogrio")
    run = land_cover(**dict(pictured.model_copy(update={"tiling": Tiling(geopackage=str(path))})))
    assert {record.tile.name: record.state for record in run.records} == {
        "in-3035": TileState.LABELLED,
        "in-4326": TileState.LABELLED,
    }
    assert [record.tile.epsg for record in read_ledger(Path(run.folder) / "ledger.gpkg")] == [3035, 4326]
    for epsg, expected in bounds.items():
        patch = EOPatch.load(f"{run.folder}/eopatches/eopatch_in-{epsg}")
        assert (patch.bbox.crs.epsg, tuple(patch.bbox)) == (epsg, pytest.approx(expected))
        assert patch.data["BANDS"].shape == (5, 60, 60, 6)
        assert np.count_nonzero(patch.mask_timeless["LULC"]) > 0.9 * 3600
