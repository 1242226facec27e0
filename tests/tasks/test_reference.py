import json
import shutil
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
import rasterio
import s3fs
import shapely
from eolearn.core import EOPatch, FeatureType
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from tasks.arrayfiles import FileFormat
from tasks.conversion import PatchOptions, convert_tile, is_converted
from tasks.errors import InvalidInput, NotPrepared, TileError
from tasks.grid import Tile
from tasks.quality import LabelQuality
from tasks.reference import (
    LabelRecord,
    PreparedReference,
    Reference,
    ReferenceSource,
    burn,
    is_labelled,
    label_quality,
    prepare_reference,
    rasterise_reference,
    rasterise_tile,
    reference_source,
)
from tasks.reference.polygons import TilePolygons, polygons_of_tile
from tasks.reference.shapes import Geometries
from tasks.storage import Storage
from tests.tasks.delivery_files import MAPPING, PROVENANCE, TILE, dates, deliver, random_outputs

FILES = LocalFileSystem()
MIN_X, MIN_Y, MAX_X, MAX_Y = TILE.bounds
WHOLE = shapely.box(*TILE.bounds)
WEST = shapely.box(MIN_X, MIN_Y, MIN_X + 320, MAX_Y)
FAR = shapely.box(MIN_X + 50_000, MIN_Y, MIN_X + 51_000, MAX_Y)


def write(path: Path, geometries: list[Any], crs: str | None = "EPSG:32633", **columns: list[Any]) -> Reference:
    frame = gpd.GeoDataFrame(columns, geometry=geometries, crs=crs)
    pyogrio.write_dataframe(frame, path)
    return Reference(file=str(path))


def prepare(reference: Reference, folder: Path, tile: Tile = TILE) -> PreparedReference:
    return prepare_reference(reference, Storage(), [tile], folder)


def found_in(prepared: PreparedReference, tile: Tile = TILE) -> TilePolygons:
    found = polygons_of_tile(Path(prepared.folder), tile)
    assert found is not None
    return found


def lulc_of(prepared: PreparedReference, tile: Tile = TILE) -> np.ndarray:
    found = found_in(prepared, tile)
    return burn(found.wkb, found.ids, tile, all_touched=prepared.reference.all_touched).classes


def source_of(reference: Reference) -> ReferenceSource:
    return reference_source(reference, Storage())


@pytest.fixture
def patch(tmp_path: Path) -> str:
    """Folder of a converted EOPatch of TILE, on the local disk."""
    return make_patch(tmp_path, "npy.gz")


def make_patch(tmp_path: Path, file_format: FileFormat) -> str:
    folder = str(tmp_path / "out" / "eopatches" / "eopatch_33TVM_4_5")
    delivered = deliver(tmp_path / "tile", random_outputs(TILE, 2), TILE, dates(2))
    options = PatchOptions(file_format=file_format)
    convert_tile(TILE, delivered, FILES, FILES, folder, mapping=MAPPING, options=options, provenance=PROVENANCE)
    return folder


# ---- the real data ----


def test_lulc_of_the_real_polygons_is_what_eolearn_rasterised_in_every_pixel(test_data: Path, tmp_path: Path) -> None:
    with rasterio.open(test_data / "reference" / "slovenia-land-use-rasterised.tif") as raster:
        expected = raster.read(1)
        tile = Tile("slovenia", 32633, tuple(raster.bounds), raster.width, raster.height)
    reference = Reference(file=str(test_data / "reference" / "slovenia-land-use.gpkg"))

    prepared = prepare(reference, tmp_path, tile)

    np.testing.assert_array_equal(lulc_of(prepared, tile), expected)
    assert prepared.findings.polygons == 88


# ---- rasterising ----


def test_a_pixel_belongs_to_the_polygon_that_holds_its_centre() -> None:
    random = np.random.default_rng(3)
    corners = random.uniform((MIN_X, MIN_Y), (MAX_X, MAX_Y), (12, 3, 2))
    triangles = np.array([shapely.Polygon(triangle) for triangle in corners])
    classes = np.arange(1, 13)

    lulc = burn(Geometries(triangles).wkb(), classes, TILE).classes

    expected = np.zeros((TILE.height, TILE.width), np.uint8)
    for row in range(TILE.height):
        for column in range(TILE.width):
            centre = shapely.Point(TILE.transform * (column + 0.5, row + 0.5))
            for triangle, number in zip(triangles, classes, strict=True):
                if triangle.contains(centre):
                    expected[row, column] = number
    np.testing.assert_array_equal(lulc, expected)


def test_the_last_row_of_the_file_wins_whatever_a_spatial_index_makes_of_the_order(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    boxes = [
        shapely.box(x, y, x + 200, y + 200) for x, y in random.uniform((MIN_X, MIN_Y), (MAX_X, MAX_Y), (60, 2)) - 100
    ]
    classes = random.permutation(60) + 1
    reference = write(tmp_path / "boxes.gpkg", boxes, LULC_ID=classes.tolist())

    lulc = lulc_of(prepare(reference, tmp_path))

    np.testing.assert_array_equal(lulc, burn(Geometries(np.array(boxes)).wkb(), classes, TILE).classes)


def test_polygons_in_longitude_and_latitude_land_where_they_belong(tmp_path: Path) -> None:
    lonlat = gpd.GeoSeries([WEST], crs=32633).to_crs(4326)
    reference = write(tmp_path / "west.geojson", list(lonlat), "EPSG:4326", LULC_ID=[2])

    lulc = lulc_of(prepare(reference, tmp_path))

    assert (lulc[:, :16] == 2).all()
    assert not lulc[:, 16:].any()


def test_a_polygon_that_a_projection_cannot_hold_costs_nothing(tmp_path: Path) -> None:
    lonlat = gpd.GeoSeries([WEST], crs=32633).to_crs(4326)
    pole_to_pole = shapely.box(100, -90, 110, 90)
    reference = write(tmp_path / "world.gpkg", [*lonlat, pole_to_pole], "EPSG:4326", LULC_ID=[2, 3])

    assert set(np.unique(lulc_of(prepare(reference, tmp_path)))) <= {0, 2, 3}


# ---- in the EOPatch ----


@pytest.mark.parametrize("file_format", ["npy.gz", "zarr"])
def test_lulc_and_its_polygons_are_added_to_the_eopatch_and_nothing_else_changes(
    tmp_path: Path, file_format: FileFormat
) -> None:
    folder = make_patch(tmp_path, file_format)
    before = EOPatch.load(folder)
    _ = before.data["BANDS"]
    reference = write(tmp_path / "r.gpkg", [WEST, FAR], LULC_ID=[2, 3], LULC_NAME=["forest", "grassland"])

    record = rasterise_tile(prepare(reference, tmp_path), TILE, FILES, folder, file_format)

    after = EOPatch.load(folder)
    assert after.mask_timeless["LULC"].dtype == np.uint8
    assert after.mask_timeless["LULC"].shape == (TILE.height, TILE.width, 1)
    polygons = after.vector_timeless["LULC_REFERENCE"]
    assert polygons[["LULC_ID", "LULC_NAME"]].to_numpy().tolist() == [[2, "forest"]]
    assert polygons.crs.to_epsg() == TILE.epsg
    assert polygons.geometry.iloc[0].equals(WEST)
    np.testing.assert_array_equal(after.data["BANDS"], before.data["BANDS"])
    assert (after.bbox, after.timestamps) == (before.bbox, before.timestamps)
    assert is_converted(FILES, folder, TILE.name, MAPPING, file_format, PROVENANCE)
    quality = LabelQuality(
        pixels={0: 384, 2: 384},
        polygons=1,
        overlapping=0,
        overlap_pixels=0,
        repaired=0,
        without_class=0,
        unmapped={},
    )
    assert record == LabelRecord(TILE.name, quality, record.bytes_written, record.seconds)
    assert quality.coverage == 0.5
    assert label_quality(FILES, folder) == quality


def test_a_tile_without_polygons_gets_an_empty_mask_and_no_failure(tmp_path: Path, patch: str) -> None:
    record = rasterise_tile(
        prepare(write(tmp_path / "far.gpkg", [FAR], LULC_ID=[1]), tmp_path), TILE, FILES, patch, "npy.gz"
    )

    after = EOPatch.load(patch)
    assert not after.mask_timeless["LULC"].any()
    assert len(after.vector_timeless["LULC_REFERENCE"]) == 0
    assert (record.quality.coverage, record.quality.polygons) == (0.0, 0)


def test_the_marker_tells_whether_a_patch_has_this_reference(tmp_path: Path, patch: str) -> None:
    reference = write(tmp_path / "r.gpkg", [WEST], LULC_ID=[2])
    source = source_of(reference)
    assert "does not exist" in is_labelled(FILES, patch, source, "npy.gz").reason

    rasterise_tile(prepare(reference, tmp_path / "work"), TILE, FILES, patch, "npy.gz")

    assert is_labelled(FILES, patch, source, "npy.gz")
    recoded = Reference(file=reference.file, class_table={"2": 3})
    verdict = is_labelled(FILES, patch, source_of(recoded), "npy.gz")
    assert not verdict
    assert "class_table_sha256" in verdict.reason


def test_a_new_reference_replaces_the_old_one(tmp_path: Path) -> None:
    folder = make_patch(tmp_path, "zarr")
    first = prepare(write(tmp_path / "first.gpkg", [WHOLE], LULC_ID=[2]), tmp_path / "1")
    second = prepare(write(tmp_path / "second.gpkg", [WEST], LULC_ID=[3]), tmp_path / "2")

    rasterise_tile(first, TILE, FILES, folder, "npy.gz")
    rasterise_tile(second, TILE, FILES, folder, "zarr")

    assert EOPatch.load(folder).mask_timeless["LULC"].max() == 3
    assert [path.name for path in (Path(folder) / "mask_timeless").iterdir() if path.stem.startswith("LULC")] == [
        "LULC.zarr"
    ]


def test_a_tile_that_is_not_converted_gets_no_reference(tmp_path: Path) -> None:
    prepared = prepare(write(tmp_path / "r.gpkg", [WEST], LULC_ID=[2]), tmp_path)

    with pytest.raises(TileError, match=r"there is no converted EOPatch in .*convert the tile first"):
        rasterise_tile(prepared, TILE, FILES, str(tmp_path / "eopatches" / "eopatch_x"), "npy.gz")


def test_a_tile_that_was_not_planned_is_prepared_by_itself(tmp_path: Path, patch: str) -> None:
    elsewhere = Tile("elsewhere", 32633, (MIN_X - 640, MIN_Y, MIN_X, MAX_Y), TILE.width, TILE.height)
    prepared = prepare(write(tmp_path / "r.gpkg", [WEST], LULC_ID=[2]), tmp_path, elsewhere)

    with pytest.raises(NotPrepared, match="no reference was prepared for it; prepare it for this tile too"):
        rasterise_tile(prepared, TILE, FILES, patch, "npy.gz")
    record = rasterise_reference.fn(TILE, prepared, Storage(), patch, file_format="npy.gz")

    assert record.quality.pixels == {0: 384, 2: 384}


def test_reference_and_eopatch_may_both_lie_on_s3(
    tmp_path: Path, s3_files: s3fs.S3FileSystem, bucket: str, storage: Storage
) -> None:
    delivered = deliver(tmp_path / "tile", random_outputs(TILE, 2), TILE, dates(2))
    folder = f"{bucket}/run/eopatches/eopatch_33TVM_4_5"
    convert_tile(
        TILE, delivered, FILES, s3_files, folder, mapping=MAPPING, options=PatchOptions(), provenance=PROVENANCE
    )
    write(tmp_path / "r.shp", [WEST], LULC_ID=[2])
    for part in tmp_path.glob("r.*"):
        s3_files.put_file(str(part), f"{bucket}/{part.name}")
    reference = Reference(file=f"s3://{bucket}/r.shp")

    prepared = prepare_reference(reference, storage, [TILE], tmp_path / "work")
    rasterise_tile(prepared, TILE, s3_files, folder, "npy.gz")
    rasterise_tile(prepared, TILE, s3_files, folder, "npy.gz")

    assert is_labelled(s3_files, folder, prepared.source, "npy.gz")
    s3_files.get(folder, str(tmp_path / "copy"), recursive=True)
    assert EOPatch.load(str(tmp_path / "copy"))[FeatureType.MASK_TIMELESS, "LULC"].sum() == 2 * 16 * TILE.height


# ---- classes ----


def test_text_becomes_classes_by_the_class_table(tmp_path: Path) -> None:
    reference = write(tmp_path / "r.gpkg", [WHOLE, WEST], LULC=["water", "forest"])
    reference = Reference(file=reference.file, class_column="LULC", class_table={"forest": 2, "water": 5})

    prepared = prepare(reference, tmp_path)

    assert set(np.unique(lulc_of(prepared))) == {2, 5}
    assert found_in(prepared).names.to_pylist() == ["WATER", "FOREST"]


def test_numbers_become_classes_by_the_class_table_also_where_nulls_made_them_floats(tmp_path: Path) -> None:
    write(tmp_path / "r.gpkg", [WHOLE, WEST, WEST], RABA_ID=[1300.0, 2000.0, None])
    reference = Reference(file=str(tmp_path / "r.gpkg"), class_column="RABA_ID", class_table={1300: 3, 2000: 2})

    prepared = prepare(reference, tmp_path)

    assert set(np.unique(lulc_of(prepared))) == {2, 3}
    assert (prepared.findings.polygons, prepared.findings.without_class) == (2, 1)
    assert found_in(prepared).without_class == 1


def test_names_come_from_the_column_that_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "r.gpkg", [WHOLE], LULC_ID=[2], LULC_NAME=["forest"], local=["gozd"])
    reference = Reference(file=str(tmp_path / "r.gpkg"), name_column="local")

    assert found_in(prepare(reference, tmp_path)).names.to_pylist() == ["gozd"]


@pytest.mark.parametrize(
    ("values", "table", "message"),
    [
        ([1, 300], None, "1 rows have values that are no class ids.*from 0 to 255.*class_table.*Values: 300"),
        ([1.0, 1.7], None, "Values: 1.7"),
        ([-1, 2], None, "Values: -1"),
        (["forest", "2"], None, "2 rows have values that are no class ids.*Values: '2', 'forest'"),
        (["forest", "bog"], {"forest": 2}, r"not in the class table \('forest'\).*Values: 'bog'"),
        (list(range(1000, 1020)), {"1": 1}, "20 rows.*Values: 1000, 1001, .*, 1009, …"),
    ],
)
def test_values_that_are_no_classes_are_refused_by_name(
    tmp_path: Path, values: list[Any], table: dict[str, int] | None, message: str
) -> None:
    write(tmp_path / "r.gpkg", [WHOLE] * len(values), LULC_ID=values)
    reference = Reference(file=str(tmp_path / "r.gpkg"), class_table=table)

    with pytest.raises(InvalidInput, match=message) as caught:
        prepare(reference, tmp_path)
    assert "column LULC_ID" in str(caught.value)


def test_a_class_table_holds_ids_of_one_byte() -> None:
    with pytest.raises(ValidationError, match=r"class ids must be 0 to 255, .* \{'forest': 256\}"):
        Reference(file="r.gpkg", class_table={"forest": 256})


# ---- geometries ----


def test_invalid_and_missing_geometries_are_repaired_or_left_out_and_counted(tmp_path: Path) -> None:
    bow_tie = shapely.Polygon([(MIN_X, MIN_Y), (MAX_X, MAX_Y), (MAX_X, MIN_Y), (MIN_X, MAX_Y)])
    with_spike = shapely.Polygon([(MIN_X, MIN_Y), (MIN_X + 320, MIN_Y), (MIN_X + 320, MAX_Y), (MIN_X + 320, MIN_Y)])
    spiked = shapely.Polygon([(MIN_X, MIN_Y), (MAX_X, MIN_Y), (MAX_X, MAX_Y), (MAX_X, MAX_Y + 99), (MAX_X, MAX_Y)])
    write(tmp_path / "r.gpkg", [bow_tie, None, with_spike, spiked, shapely.Polygon()], LULC_ID=[1, 2, 3, 4, 5])

    prepared = prepare(Reference(file=str(tmp_path / "r.gpkg")), tmp_path)

    findings = prepared.findings
    assert (findings.polygons, findings.repaired, findings.without_polygon) == (2, 2, 3)
    assert set(np.unique(lulc_of(prepared))) == {0, 1, 4}


@pytest.mark.parametrize("buffer_m", [0, -10])
@pytest.mark.parametrize("driver", ["gpkg", "geojson"])
def test_half_a_world_around_a_tile_is_more_than_utm_can_hold_and_labels_it_all_the_same(
    tmp_path: Path, driver: str, buffer_m: float
) -> None:
    # by way of Sumatra, where UTM 33 has no numbers
    east = shapely.Polygon([(-60, -10), (105, 0), (179, -10), (179, 85), (-60, 85)])
    west = shapely.box(-120, -10, -61, 85)
    write(tmp_path / f"r.{driver}", [east, west], crs="EPSG:4326", LULC_ID=[7, 3])

    prepared = prepare(Reference(file=str(tmp_path / f"r.{driver}"), buffer_m=buffer_m), tmp_path)

    assert (prepared.findings.polygons, prepared.findings.too_small) == (1, 0)
    assert (lulc_of(prepared) == 7).all()


def test_a_file_of_points_has_no_polygon(tmp_path: Path) -> None:
    reference = write(tmp_path / "r.gpkg", [shapely.Point(MIN_X, MIN_Y)], LULC_ID=[1])

    with pytest.raises(InvalidInput, match="has no polygon but geometries of type Point"):
        prepare(reference, tmp_path)


# ---- files ----


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nowhere.gpkg does not exist"):
        prepare(Reference(file=str(tmp_path / "nowhere.gpkg")), tmp_path)


def test_a_file_that_is_not_vector_data_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.gpkg").write_bytes(b"no geopackage")

    with pytest.raises(InvalidInput, match=r"r.gpkg is not readable as vector data"):
        prepare(Reference(file=str(tmp_path / "r.gpkg")), tmp_path)


def test_a_truncated_geopackage_is_refused(tmp_path: Path) -> None:
    reference = write(tmp_path / "whole.gpkg", [WEST] * 500, LULC_ID=[1] * 500)
    content = Path(reference.file).read_bytes()
    (tmp_path / "r.gpkg").write_bytes(content[: len(content) // 2])

    with pytest.raises(InvalidInput, match=r"r\.gpkg"):
        prepare(Reference(file=str(tmp_path / "r.gpkg")), tmp_path)


def test_a_file_without_a_crs_is_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="'crs' was not provided"):
        write(tmp_path / "r.shp", [WEST], None, LULC_ID=[1])

    with pytest.raises(InvalidInput, match="has no coordinate reference system; assign"):
        prepare(Reference(file=str(tmp_path / "r.shp")), tmp_path)


def test_an_unknown_column_is_answered_with_the_columns_there_are(tmp_path: Path) -> None:
    write(tmp_path / "r.gpkg", [WEST], LULC_ID=[1], AREA=[2.0])

    for reference in ({"class_column": "CLASS"}, {"name_column": "CLASS"}):
        with pytest.raises(InvalidInput, match="has no column CLASS; its columns are LULC_ID, AREA"):
            prepare(Reference(file=str(tmp_path / "r.gpkg"), **reference), tmp_path)


def test_of_several_layers_one_must_be_named(tmp_path: Path) -> None:
    frame = gpd.GeoDataFrame({"LULC_ID": [1]}, geometry=[WEST], crs=32633)
    for layer in ("2018", "2019"):
        pyogrio.write_dataframe(frame, tmp_path / "r.gpkg", layer=layer)
    pyogrio.write_dataframe(pd.DataFrame({"style": ["red"]}), tmp_path / "r.gpkg", layer="styles")

    with pytest.raises(InvalidInput, match="no layer was named; name one of its layers: 2018, 2019"):
        prepare(Reference(file=str(tmp_path / "r.gpkg")), tmp_path)
    with pytest.raises(InvalidInput, match="layer 2020 is not in it; name one of its layers: 2018, 2019"):
        prepare(Reference(file=str(tmp_path / "r.gpkg"), layer="2020"), tmp_path)
    assert prepare(Reference(file=str(tmp_path / "r.gpkg"), layer="2019"), tmp_path).findings.polygons == 1


@pytest.mark.parametrize("suffix", ["gpkg", "shp", "geojson", "fgb", "zip"])
def test_the_usual_vector_formats_are_read(tmp_path: Path, suffix: str) -> None:
    lonlat = list(gpd.GeoSeries([WEST], crs=32633).to_crs(4326))
    if suffix == "zip":
        (tmp_path / "shapes").mkdir()
        write(tmp_path / "shapes" / "r.shp", lonlat, "EPSG:4326", LULC_ID=[7])
        shutil.make_archive(str(tmp_path / "r"), "zip", tmp_path / "shapes")
    else:
        write(tmp_path / f"r.{suffix}", lonlat, "EPSG:4326", LULC_ID=[7])

    prepared = prepare(Reference(file=str(tmp_path / f"r.{suffix}")), tmp_path / "work")

    assert prepared.findings.polygons == 1
    lulc = lulc_of(prepared)
    assert (lulc[1:-1, 1:15] == 7).all()  # there and back, its edges may have moved by a hair
    assert (lulc[:, 17:] == 0).all()


def test_a_reference_survives_json_as_a_form_sends_it() -> None:
    reference = Reference(file="r.gpkg", class_table={1300: 3})

    assert Reference.model_validate(json.loads(reference.model_dump_json())) == reference
