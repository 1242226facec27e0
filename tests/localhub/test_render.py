"""Samples are what the service documents: harmonised or not, interpolated, mosaicked in each order."""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rasterio.windows import Window

from localhub.archive import Archive
from localhub.payload import Data
from localhub.render import read_samples, select, without_added
from tasks.grid import Tile
from tests.localhub.made_scenes import METHODS, grid, warped, write_scene

FILE = grid(32633, 728000.0, 5098000.0, 10, 60, 50)
OTHER_GRIDS = [
    grid(32633, 728000.0, 5098000.0, 20, 30, 25, "coarser"),
    grid(32633, 728003.0, 5097996.0, 7, 70, 60, "finer"),
    grid(32634, 263430.0, 5098300.0, 20, 27, 23, "next UTM zone, coarser"),
    grid(32634, 263430.0, 5098300.0, 7, 60, 55, "next UTM zone, finer"),
    Tile("degrees, coarser", 4326, (17.945, 45.993, 17.952, 45.998), 27, 26),
    Tile("degrees, finer", 4326, (17.945, 45.995, 17.948, 45.9975), 55, 50),
    Tile("web Mercator, coarser", 3857, (1997600.0, 5779250.0, 1998350.0, 5779950.0), 23, 21),
    Tile("web Mercator, finer", 3857, (1997700.0, 5779550.0, 1998100.0, 5779930.0), 57, 52),
]
OLD, NEW = {"s2:processing_baseline": "02.09"}, {"s2:processing_baseline": "04.00"}


def whole(place: Tile) -> Window:
    return Window(0, 0, place.width, place.height)


def collection(**processing: Any) -> Data:
    return Data.model_validate({"type": "sentinel-2-l1c", "processing": processing})


def read(folder: Path, place: Tile, data: Data, factor: float = 1, band: str = "B02") -> NDArray[Any]:
    """The band of the archive's scenes, one sample of all."""
    (selection,) = select(Archive.open(folder), [data], place)
    samples = read_samples(selection, [range(len(selection.scenes))], {band: factor}, place, whole(place))
    (values,) = samples[band]
    return values


@pytest.fixture(scope="module")
def reflectance_dn() -> NDArray[Any]:
    """10000 times the reflectance, with negative ones, but none that a cubic could bring below what files hold."""
    return np.random.default_rng(11).integers(-400, 1500, (50, 60))


@pytest.fixture(scope="module")
def holes() -> NDArray[Any]:
    found = np.random.default_rng(12).random((50, 60)) < 0.1
    found[:, :9] = True
    return found


@pytest.fixture
def shifted(tmp_path: Path, reflectance_dn: NDArray[Any], holes: NDArray[Any]) -> Path:
    """An archive of one scene, whose files have 1000 more than its reflectance and 0 where there is no data."""
    stored = np.where(holes, 0, reflectance_dn + 1000).astype(np.uint16)
    write_scene(tmp_path, "s", {"B02": stored, "SCL": stored, "CLP": stored}, FILE, **NEW)
    return tmp_path


def test_harmonised_values_are_comparable_with_older_ones_and_never_negative(
    shifted: Path, reflectance_dn: NDArray[Any], holes: NDArray[Any]
) -> None:
    expected = np.where(holes, 0, np.maximum(reflectance_dn, 0))
    for factor in (1, 0.0001):
        values = read(shifted, FILE, collection(), factor)
        assert values.dtype == np.uint16
        np.testing.assert_array_equal(values, expected)


def test_values_that_are_not_harmonised_are_the_files_as_dn_and_may_be_negative_as_reflectance(
    shifted: Path, reflectance_dn: NDArray[Any], holes: NDArray[Any]
) -> None:
    data = collection(harmonizeValues=False)
    np.testing.assert_array_equal(read(shifted, FILE, data), np.where(holes, 0, reflectance_dn + 1000))
    reflectance = read(shifted, FILE, data, 0.0001)
    np.testing.assert_array_equal(reflectance, np.where(holes, 0, reflectance_dn))
    assert reflectance.min() < 0


@pytest.mark.parametrize("harmonize", [True, False])
def test_the_mask_and_bands_other_than_optical_ones_stay_as_they_are(
    shifted: Path, reflectance_dn: NDArray[Any], holes: NDArray[Any], harmonize: bool
) -> None:
    data = collection(harmonizeValues=harmonize)
    for band in ("SCL", "CLP"):
        np.testing.assert_array_equal(read(shifted, FILE, data, band=band), np.where(holes, 0, reflectance_dn + 1000))
    np.testing.assert_array_equal(read(shifted, FILE, data, band="dataMask"), ~holes)


@pytest.mark.parametrize("resampling", ["NEAREST", "BILINEAR", "BICUBIC"])
@pytest.mark.parametrize("place", OTHER_GRIDS, ids=lambda place: place.name)
def test_what_a_file_adds_is_gone_from_interpolated_values_also_beside_no_data(
    tmp_path: Path, holes: NDArray[Any], place: Tile, resampling: str
) -> None:
    """Two files of the same reflectance, with and without the addition, read alike."""
    reflectance = np.random.default_rng(13).integers(3000, 7000, (50, 60))  # far from what a cubic brings below 0
    for name, added, baseline in (("old", 0, OLD), ("new", 1000, NEW)):
        stored = np.where(holes, 0, reflectance + added).astype(np.uint16)
        write_scene(tmp_path / name, "s", {"B02": stored}, FILE, **baseline)
    data = collection(upsampling=resampling, downsampling=resampling)
    new = read(tmp_path / "new", place, data)
    np.testing.assert_array_equal(new, read(tmp_path / "old", place, data))
    assert set(np.unique(new == 0)) == {True, False}


@pytest.mark.parametrize("resampling", ["NEAREST", "BILINEAR", "BICUBIC"])
@pytest.mark.parametrize("place", OTHER_GRIDS, ids=lambda place: place.name)
def test_interpolated_values_are_gdals(shifted: Path, place: Tile, resampling: str) -> None:
    """On every grid, by every method: GDAL's warp of the whole file, less what it adds."""
    file = shifted / "s_B02.tif"
    nodata = {"src_nodata": 0, "dst_nodata": 0}
    has_data = warped(file, place, METHODS["NEAREST"], **nodata) != 0
    expected = np.where(has_data, warped(file, place, METHODS[resampling], **nodata).astype(int) - 1000, 0)
    method = {"upsampling": resampling, "downsampling": resampling}
    np.testing.assert_array_equal(read(shifted, place, collection(**method)), np.maximum(expected, 0))
    unharmonised = read(shifted, place, collection(**method, harmonizeValues=False), 0.0001)
    np.testing.assert_array_equal(unharmonised, expected)


def test_only_the_method_of_the_way_that_the_pixels_change_counts(shifted: Path) -> None:
    coarser, finer = OTHER_GRIDS[:2]
    for place, used, unused in ((coarser, "downsampling", "upsampling"), (finer, "upsampling", "downsampling")):
        nearest = read(shifted, place, collection())
        cubic = read(shifted, place, collection(upsampling="BICUBIC", downsampling="BICUBIC"))
        np.testing.assert_array_equal(read(shifted, place, collection(**{used: "BICUBIC"})), cubic)
        np.testing.assert_array_equal(read(shifted, place, collection(**{unused: "BICUBIC"})), nearest)
        assert (cubic != nearest).any()


def test_scenes_of_both_kinds_mosaic_as_one(tmp_path: Path, holes: NDArray[Any]) -> None:
    values = np.random.default_rng(14).integers(-500, 5000, (2, 50, 60))
    new, old = values[0], np.maximum(values[1], 1)
    write_scene(tmp_path, "new", {"B02": np.where(holes, 0, new + 1000).astype(np.uint16)}, FILE, time=_day(2), **NEW)
    write_scene(tmp_path, "old", {"B02": old.astype(np.uint16)}, FILE, time=_day(1), **OLD)
    np.testing.assert_array_equal(read(tmp_path, FILE, collection()), np.where(holes, old, np.maximum(new, 0)))
    unharmonised = read(tmp_path, FILE, collection(harmonizeValues=False), 0.0001)
    np.testing.assert_array_equal(unharmonised, np.where(holes, old, new))


def test_0_stays_no_data_whatever_is_taken_off() -> None:
    stored = np.array([0, 1, 999, 1000, 1001, 65535], np.uint16)
    assert without_added(stored, 1000, negative=False).tolist() == [0, 0, 0, 0, 1, 64535]
    assert without_added(stored, 1000, negative=True).tolist() == [0, -999, -1, 0, 1, 64535]
    floats = without_added(stored.astype(np.float32), 1000, negative=True)
    assert (floats.dtype, floats.tolist()) == (np.float32, [0, -999, -1, 0, 1, 64535])


def _day(number: int) -> str:
    return f"2022-06-{number:02d}T10:00:00Z"


COVERS = (40.0, 5.0, 40.0, 90.0)
"""Cloud cover of four scenes, of the first to the fourth of June."""


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[Any]]:
    """Four scenes of the same place with holes, each over other columns, and their values: (scene, row, column)."""
    folder = tmp_path_factory.mktemp("overlapping")
    random = np.random.default_rng(15)
    values = random.integers(1, 9999, (4, 50, 60)) * (random.random((4, 50, 60)) < 0.7)
    for number, (scene, cover) in enumerate(zip(values, COVERS, strict=True)):
        first, last = 10 * number, 10 * number + 30
        scene[:, :first] = scene[:, last:] = 0
        part = grid(32633, 728000.0 + 10 * first, 5098000.0, 10, last - first, 50)
        stored = scene[:, first:last].astype(np.uint16)
        properties = {"eo:cloud_cover": cover}
        write_scene(folder, f"s{number}", {"B02": stored}, part, time=_day(number + 1), **properties)
    return folder, values


@pytest.mark.parametrize("most", [100, 90, 89.9, 40, 5, 4.9])
@pytest.mark.parametrize("order", ["mostRecent", "leastRecent", "leastCC"])
def test_every_pixel_is_that_of_the_first_scene_in_the_order_that_has_data_there(
    overlapping: tuple[Path, NDArray[Any]], order: str, most: float
) -> None:
    folder, values = overlapping
    chosen = [number for number in range(4) if COVERS[number] <= most]
    sooner = {
        "mostRecent": lambda number: -number,
        "leastRecent": lambda number: number,
        "leastCC": lambda number: (COVERS[number], -number),
    }
    chosen.sort(key=sooner[order])
    expected = np.zeros((50, 60), int)
    for row, column in np.ndindex(50, 60):
        expected[row, column] = next((v for n in chosen if (v := values[n, row, column])), 0)
    data = Data.model_validate(
        {"type": "sentinel-2-l1c", "dataFilter": {"mosaickingOrder": order, "maxCloudCoverage": most}}
    )
    np.testing.assert_array_equal(read(folder, FILE, data), expected)
    assert (expected > 0).any() == (most >= 5)


def test_the_default_order_is_the_most_recent_one(overlapping: tuple[Path, NDArray[Any]]) -> None:
    folder, _ = overlapping
    data = Data.model_validate({"type": "sentinel-2-l1c"})
    (selection,) = select(Archive.open(folder), [data], FILE)
    times = [scene.datetime for scene in selection.scenes]
    assert times == sorted(times, reverse=True)
    assert times[0] == datetime.fromisoformat(_day(4))


def test_scripts_are_told_where_the_data_of_each_item_lie(overlapping: tuple[Path, NDArray[Any]]) -> None:
    folder, _ = overlapping
    archive = Archive.open(folder)
    (selection,) = select(archive, [Data.model_validate({"type": "sentinel-2-l1c"})], FILE)
    footprints = {scene.data_path: scene.footprint for scene in archive.scenes}
    assert len({footprint.wkt for footprint in footprints.values()}) == 4
    assert {scene.path: scene.footprint for scene in selection.dataset.scenes} == footprints
