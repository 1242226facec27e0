"""Our EOPatch of a delivered tile is eo-grow's: every array bit for bit, the timestamps and the place."""

import json
import subprocess
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
from eolearn.core import EOPatch
from fsspec.implementations.local import LocalFileSystem

from tasks.arrayfiles import FileFormat
from tasks.conversion import FeatureMapping, FeatureRule, PatchOptions, convert_tile
from tests.localhub.clients.eogrow_project import RUN_SECONDS
from tests.tasks.delivery_files import BANDS, INDICES, PROVENANCE, TILE, dates, deliver, random_outputs

FILES = LocalFileSystem(auto_mkdir=True)
ORDER = [2, 0, 3, 1]
"""Of the dates in the files."""


def rule(kind: str, name: str, outputs: tuple[str, ...], dtype: str, scale: float = 1.0) -> FeatureRule:
    return FeatureRule(feature_type=kind, name=name, outputs=outputs, dtype=dtype, scale=scale)


def features(dtype: str, scale: float) -> FeatureMapping:
    """What eo-grow can map as well: it knows no offset, and no number for no data."""
    rules = [rule("data", "BANDS", BANDS, dtype, scale)]
    rules += [rule("data", index, (index,), dtype, scale) for index in INDICES]
    rules += [
        rule("mask", "QUALITY", ("QUALITY",), "uint8"),
        rule("mask_timeless", "VALID_COUNT", ("VALID_COUNT",), "uint16"),
    ]
    return FeatureMapping(features=tuple(rules), quality_output=None)


def config(root: Path, mapping: FeatureMapping) -> dict[str, Any]:
    return {
        "pipeline": "eogrow.pipelines.batch_to_eopatch.BatchToEOPatchPipeline",
        "storage": {
            "manager": "eogrow.core.storage.StorageManager",
            "project_folder": str(root),
            "structure": {"grids": "grids", "batch": "batch", "eopatches": "eopatches"},
        },
        "area": {
            "manager": "eogrow.core.area.CustomGridAreaManager",
            "grid_folder_key": "grids",
            "grid_filename": "grid.gpkg",
            "name_column": "identifier",
        },
        "logging": {"manager": "eogrow.core.logging.LoggingManager", "save_logs": False},
        "debug": True,  # in the process itself instead of in a Ray cluster
        "input_folder_key": "batch",
        "output_folder_key": "eopatches",
        "userdata_timestamp_reader": "userdata['timestamps']",
        "remove_batch_data": False,
        "mapping": [
            {"batch_files": [f"{output}.tif" for output in rule.outputs], "feature": [rule.feature_type, rule.name]}
            | ({"multiply_factor": rule.scale, "dtype": rule.dtype} if rule.scale != 1 else {})
            for rule in mapping.features
        ],
    }


def eogrows_patch(programs: Path, root: Path, mapping: FeatureMapping) -> EOPatch:
    """Convert what lies in <root>/batch by eo-grow's own command."""
    (root / "grids").mkdir()
    grid = gpd.GeoDataFrame({"identifier": [TILE.name]}, geometry=[shapely.box(*TILE.bounds)], crs=TILE.epsg)
    grid.to_file(root / "grids" / "grid.gpkg", engine="pyogrio")
    (root / "pipeline.json").write_text(json.dumps(config(root, mapping)))
    done = subprocess.run(
        [programs / "eogrow", root / "pipeline.json"],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return EOPatch.load(str(root / "eopatches" / TILE.name))


@pytest.mark.parametrize(
    ("dtype", "scale", "interleave", "file_format"),
    [("float32", 1e-4, "pixel", "npy.gz"), ("uint16", 1.0, "band", "zarr")],
)
def test_our_eopatch_is_eogrows(
    eogrow_programs: Path, tmp_path: Path, dtype: str, scale: float, interleave: str, file_format: FileFormat
) -> None:
    outputs = random_outputs(TILE, len(ORDER))
    shuffled = {name: numbers[ORDER] if len(numbers) == len(ORDER) else numbers for name, numbers in outputs.items()}
    times = [dates(len(ORDER))[position] for position in ORDER]
    delivered = deliver(tmp_path / "batch" / TILE.name, shuffled, TILE, times, interleave=interleave)
    mapping = features(dtype, scale)
    expected = eogrows_patch(eogrow_programs, tmp_path, mapping)

    folder = str(tmp_path / "ours" / "eopatches" / TILE.name)
    options = PatchOptions(file_format=file_format)
    convert_tile(TILE, delivered, FILES, FILES, folder, mapping=mapping, options=options, provenance=PROVENANCE)

    ours = EOPatch.load(folder)
    assert (ours.bbox, ours.timestamps) == (expected.bbox, expected.timestamps)
    del ours.meta_info["BATCH"]
    assert set(ours.get_features()) == set(expected.get_features())
    for feature in ours.get_features():
        assert ours[feature].dtype == expected[feature].dtype, feature
        np.testing.assert_array_equal(ours[feature], expected[feature], str(feature))
