"""What machine learning does next with an EOPatch: merge features, erode classes, sample pixels."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import shapely
from eolearn.core import EOPatch, FeatureType, MergeFeatureTask
from eolearn.geometry import ErosionTask
from eolearn.ml_tools import FractionSamplingTask
from fsspec.implementations.local import LocalFileSystem

from tasks.arrayfiles import FileFormat
from tasks.conversion import PatchOptions, convert_tile
from tasks.reference import Reference, prepare_reference, rasterise_tile
from tasks.storage import Storage
from tests.tasks.delivery_files import INDICES, MAPPING, PROVENANCE, TILE, dates, deliver, random_outputs

FILES = LocalFileSystem()
FEATURES = (FeatureType.DATA, "FEATURES")


@pytest.fixture(params=["npy.gz", "zarr"])
def labelled(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A converted and labelled EOPatch: forest in the west, grassland in the east, nothing in the south."""
    file_format: FileFormat = request.param
    folder = tmp_path / "run" / "eopatches" / "eopatch_33TVM_4_5"
    delivered = deliver(tmp_path / "tile", random_outputs(TILE, 3), TILE, dates(3))
    options = PatchOptions(file_format=file_format)
    convert_tile(TILE, delivered, FILES, FILES, str(folder), mapping=MAPPING, options=options, provenance=PROVENANCE)
    min_x, min_y, max_x, max_y = TILE.bounds
    middle = (min_x + max_x) / 2
    fields = [shapely.box(min_x, min_y + 100, middle, max_y), shapely.box(middle, min_y + 100, max_x, max_y)]
    frame = gpd.GeoDataFrame({"LULC_ID": [2, 3]}, geometry=fields, crs=TILE.epsg)
    pyogrio.write_dataframe(frame, tmp_path / "fields.gpkg")
    reference = Reference(file=str(tmp_path / "fields.gpkg"))
    prepared = prepare_reference(reference, Storage(), [TILE], tmp_path / "work")
    rasterise_tile(prepared, TILE, FILES, str(folder), file_format)
    return folder


def test_the_tasks_of_the_land_cover_example_work_on_our_patches(labelled: Path) -> None:
    lulc, eroded = (FeatureType.MASK_TIMELESS, "LULC"), (FeatureType.MASK_TIMELESS, "LULC_ERODED")
    sampled = [(*FEATURES, "FEATURES_SAMPLED"), (*eroded, "LULC_SAMPLED")]

    patch = EOPatch.load(str(labelled))
    patch = MergeFeatureTask({FeatureType.DATA: ["BANDS", *INDICES]}, FEATURES)(patch)
    patch = ErosionTask((*lulc, "LULC_ERODED"), disk_radius=3)(patch)
    patch = FractionSamplingTask(sampled, eroded, fraction=0.25, exclude_values=[0])(patch)

    assert patch[FEATURES].shape == (3, TILE.height, TILE.width, 9)
    assert np.isfinite(patch[FEATURES]).all()
    classes = patch[FeatureType.MASK_TIMELESS, "LULC_SAMPLED"]
    assert set(np.unique(classes)) == {2, 3}
    assert patch[FeatureType.DATA, "FEATURES_SAMPLED"].shape == (3, *classes.shape[:2], 9)
    labels, core = patch[lulc], patch[eroded]
    assert 0 < np.count_nonzero(core) < np.count_nonzero(labels)
    assert len(classes) == sum(round(np.count_nonzero(core == number) * 0.25) for number in (2, 3))
