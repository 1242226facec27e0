"""The sample archive is what it says: deterministic, labelled synthetic, and consistent with its reference."""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize

from localhub.archive import Archive, Scene
from localhub.reader import read_band, read_data_mask
from localhub.sample import SAMPLE_AREA, SAMPLE_PERIOD, SampleError, SampleInfo, build_sample
from localhub.sample.landscape import Extent
from localhub.sample.spectra import COVER_NAMES, COVERS, LULC_NAMES, Polygons, reflectance
from tasks.classes import LAND_COVER_CLASSES
from tasks.grid import Tile, tiles_of_grid

SMALL = {"extent": Extent(566000, 5146000, 4800), "count": 4}
CULTIVATED, FOREST, WATER, ARTIFICIAL = 1, 2, 5, 8


@pytest.fixture(scope="session")
def info(tmp_path_factory: pytest.TempPathFactory) -> SampleInfo:
    """The whole sample, built once."""
    return build_sample(tmp_path_factory.mktemp("sample") / "archive")


@pytest.fixture(scope="session")
def archive(info: SampleInfo) -> Archive:
    return Archive.open(info.folder)


@pytest.fixture(scope="session")
def tiles() -> list[Tile]:
    return tiles_of_grid(shapely.box(*SAMPLE_AREA), 4326, 1, 20)


@pytest.fixture(scope="session")
def find(archive: Archive) -> Callable[..., list[Scene]]:
    def _find(collection: str = "sentinel-2-l1c") -> list[Scene]:
        first, last = (datetime(day.year, day.month, day.day, tzinfo=UTC) for day in SAMPLE_PERIOD)
        return archive.search(
            collection, first, last + timedelta(days=1), shapely.box(*SAMPLE_AREA), order="leastRecent"
        )

    return _find


@pytest.fixture(scope="session")
def classes(info: SampleInfo, tiles: list[Tile]) -> dict[str, NDArray[np.uint8]]:
    """The reference on each tile's grid, without the pixels next to another class."""
    frame = gpd.read_file(info.reference, engine="pyogrio").to_crs(tiles[0].epsg)
    return {tile.name: _pure(_rasterised(frame, tile)) for tile in tiles}


def _rasterised(frame: gpd.GeoDataFrame, tile: Tile) -> NDArray[np.uint8]:
    pairs = zip(frame.geometry, frame["LULC_ID"], strict=True)
    return rasterize(pairs, (tile.height, tile.width), transform=tile.transform, dtype="uint8")


def _pure(classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    padded = np.pad(classes, 1, mode="edge")
    size = classes.shape
    around = [padded[r : r + size[0], c : c + size[1]] for r in range(3) for c in range(3)]
    return np.where(np.all([part == classes for part in around], axis=0), classes, 0)


def _index(scene: Scene, tile: Tile, first: str, second: str) -> NDArray[np.float64]:
    a, b = (read_band(scene, band, tile).astype(float) for band in (first, second))
    return (a - b) / np.maximum(a + b, 1)


def _clear(scenes: list[Scene], month: int, orbit: int) -> Scene:
    """The clearest scene of the month from one orbit."""
    fitting = [
        scene for scene in scenes if scene.datetime.month == month and scene.properties["sat:relative_orbit"] == orbit
    ]
    return min(fitting, key=lambda scene: scene.cloud_cover)


def _seen_clear(scene: Scene, tile: Tile) -> NDArray[np.bool_]:
    return (read_data_mask(scene, tile) == 1) & (read_band(scene, "CLP", tile) < 30)


def test_the_area_meets_four_tiles_and_the_scenes_reach_beyond_them(tiles: list[Tile], archive: Archive) -> None:
    assert [tile.name for tile in tiles] == ["33TWM_6_5", "33TWM_6_6", "33TWM_7_5", "33TWM_7_6"]
    data = shapely.union_all([scene.footprint for scene in archive.scenes])
    assert shapely.contains_properly(data, shapely.box(*SAMPLE_AREA).buffer(0.005))


def test_every_tile_has_at_least_30_acquisitions_over_the_year(
    tiles: list[Tile], find: Callable[..., list[Scene]], info: SampleInfo
) -> None:
    assert info.acquisitions >= 36
    scenes = find()
    assert len(scenes) == info.acquisitions
    for tile in tiles:
        assert sum(bool(read_data_mask(scene, tile).any()) for scene in scenes) >= 30
    times = [scene.datetime for scene in scenes]
    assert max(b - a for a, b in pairwise(times)) <= timedelta(days=10)
    assert times[0].month == 1
    assert times[-1].month == 12


def test_two_orbits_overlap_in_the_middle_and_end_on_slanted_edges(
    tiles: list[Tile], find: Callable[..., list[Scene]]
) -> None:
    west, east = (next(s for s in find() if s.properties["sat:relative_orbit"] == orbit) for orbit in (79, 122))
    masks = {
        orbit: np.block([[read_data_mask(scene, tiles[i]) for i in row] for row in ([0, 2], [1, 3])])
        for orbit, scene in ((79, west), (122, east))
    }
    assert masks[79][:, 0].all()
    assert not masks[79][:, -1].any()
    assert masks[122][:, -1].all()
    assert not masks[122][:, 0].any()
    assert (masks[79] | masks[122]).all()
    assert 0.15 < (masks[79] & masks[122]).mean() < 0.5
    assert masks[79][0].sum() > masks[79][-1].sum() + 100
    assert west.footprint.area < shapely.union_all([west.footprint, east.footprint]).area


def test_both_collections_offer_their_bands(archive: Archive, find: Callable[..., list[Scene]]) -> None:
    spectral = {f"B{number:02d}" for number in range(1, 13)} | {"B8A"}
    assert archive.bands("sentinel-2-l1c") == spectral | {"CLP", "CLM", "dataMask"}
    assert archive.bands("sentinel-2-l2a") == spectral - {"B10"} | {"CLP", "CLM", "SCL", "dataMask"}
    assert [s.datetime for s in find("sentinel-2-l1c")] == [s.datetime for s in find("sentinel-2-l2a")]


def test_everything_says_that_it_is_synthetic(info: SampleInfo, archive: Archive) -> None:
    assert all(scene.properties["synthetic"] is True and scene.id.startswith("SYNTHETIC") for scene in archive.scenes)
    assert (info.folder / "README.txt").read_text().startswith("SYNTHETIC DATA")
    assert set(gpd.read_file(info.reference, engine="pyogrio", rows=50)["SOURCE"]) == {"synthetic"}


def test_the_reference_uses_the_class_table_in_another_crs_and_covers_the_tiles_once(
    info: SampleInfo, classes: dict[str, NDArray[np.uint8]], tiles: list[Tile]
) -> None:
    names = {entry.id: entry.name for entry in LAND_COVER_CLASSES}
    assert all(names[i] == name for i, name in LULC_NAMES.items())
    frame = gpd.read_file(info.reference, engine="pyogrio")
    assert frame.crs.to_epsg() == 3794
    assert set(zip(frame["LULC_ID"], frame["LULC_NAME"], strict=True)) == set(LULC_NAMES.items())
    assert frame.geometry.is_valid.all()
    area = frame.to_crs(tiles[0].epsg).area.sum()
    assert area == pytest.approx(shapely.area(shapely.union_all(frame.to_crs(tiles[0].epsg).geometry.values)), rel=1e-4)
    for tile in tiles:
        assert (_rasterised(frame.to_crs(tile.epsg), tile) == 0).mean() < 0.002
    found = set(np.unique(np.concatenate([part.ravel() for part in classes.values()])))
    assert {CULTIVATED, FOREST, 3, WATER, ARTIFICIAL} <= found


@pytest.mark.parametrize("orbit", [79, 122])
def test_the_spectra_of_july_fit_the_classes(
    orbit: int, tiles: list[Tile], classes: dict[str, NDArray[np.uint8]], find: Callable[..., list[Scene]]
) -> None:
    scene = _clear(find(), 7, orbit)
    seen = {tile.name: _seen_clear(scene, tile) for tile in tiles}

    def values(index: tuple[str, str], lulc: int) -> NDArray[np.float64]:
        return np.concatenate(
            [_index(scene, t, *index)[seen[t.name] & (classes[t.name] == lulc)] for t in tiles if seen[t.name].any()]
        )

    ndvi, ndwi = ("B08", "B04"), ("B03", "B08")
    assert np.median(values(ndvi, FOREST)) > 0.65
    assert np.percentile(values(ndvi, FOREST), 10) > 0.6
    assert np.percentile(values(ndvi, WATER), 90) < 0
    assert np.percentile(values(ndwi, WATER), 10) > 0
    assert np.median(values(ndvi, ARTIFICIAL)) < 0.5
    assert np.median(values(("B11", "B08"), ARTIFICIAL)) > np.median(values(("B11", "B08"), FOREST)) + 0.2
    assert np.ptp(np.percentile(values(ndvi, CULTIVATED), [10, 90])) > 0.4  # stubble beside maize


def test_broadleaved_forest_and_crops_follow_the_seasons() -> None:
    names = ("broadleaved forest", "coniferous forest", "winter wheat", "maize", "lake")
    cover = np.array([COVER_NAMES.index(name) for name in names])
    count = len(names)
    plain = Polygons(cover, np.ones(count, np.float32), np.ones(count, np.float32), np.zeros(count, np.float32))

    def ndvi(day: int) -> dict[str, float]:
        ground = reflectance(plain, day)
        pixel = ground.background + ground.share * ground.gain
        return dict(zip(names, (pixel[7] - pixel[3]) / (pixel[7] + pixel[3]), strict=True))

    winter, may, july = ndvi(15), ndvi(140), ndvi(205)
    assert winter["broadleaved forest"] < 0.5
    assert july["broadleaved forest"] > 0.75
    assert winter["coniferous forest"] > 0.65
    assert may["winter wheat"] > july["winter wheat"] + 0.3
    assert july["maize"] > may["maize"] + 0.35
    assert max(day["lake"] for day in (winter, may, july)) < 0


def test_the_cloud_masks_fit_the_bright_clouds_and_the_scene_classification(
    tiles: list[Tile], find: Callable[..., list[Scene]]
) -> None:
    scenes = find("sentinel-2-l2a")
    tile = tiles[0]
    broken = [s for s in scenes if 20 < s.cloud_cover < 70 and read_data_mask(s, tile).mean() > 0.9]
    assert broken
    for scene in broken:
        blue, clm, clp, scl = (read_band(scene, band, tile) for band in ("B02", "CLM", "CLP", "SCL"))
        seen = read_data_mask(scene, tile) == 1
        assert set(np.unique(clm)) <= {0, 1}
        assert (clm[seen & (scl == 9)] == 1).mean() > 0.97
        assert np.median(blue[seen & (scl == 9)]) > 3000 > np.percentile(blue[seen & (scl < 7)], 97)
        assert np.median(clp[seen & (scl == 9)]) > 200
        assert np.median(clp[seen & (scl < 7)]) < 60
        infrared = read_band(scene, "B08", tile)
        assert (scl == 3).any()
        assert np.median(infrared[scl == 3]) < 0.75 * np.median(infrared[scl == 4])


def test_there_are_clear_and_overcast_days_and_the_classes_agree(
    tiles: list[Tile], find: Callable[..., list[Scene]]
) -> None:
    scenes = find("sentinel-2-l2a")
    clear = [scene for scene in scenes if scene.cloud_cover < 1]
    overcast = [scene for scene in scenes if scene.cloud_cover > 90]
    assert len(clear) >= 8
    assert len(overcast) >= 5
    for scene in clear[:3]:
        assert not any(read_band(scene, "CLM", tile).any() for tile in tiles)
    for scene in overcast[:3]:
        masks = [(read_band(scene, "CLM", tile), read_data_mask(scene, tile)) for tile in tiles]
        assert all(clm[mask == 1].mean() > 0.9 for clm, mask in masks if mask.any())
    values = {int(v) for scene in scenes[::6] for v in np.unique(read_band(scene, "SCL", tiles[1]))}
    assert {3, 4, 5, 6, 8, 9} <= values <= set(range(12))


def test_pixels_outside_the_swath_are_0_in_every_band(tiles: list[Tile], find: Callable[..., list[Scene]]) -> None:
    for scene in find("sentinel-2-l2a")[:4]:
        mask = read_data_mask(scene, tiles[0]) == 1
        for band in ("B02", "B12", "CLP", "CLM", "SCL"):
            assert not read_band(scene, band, tiles[0])[~mask].any()
        assert (read_band(scene, "B02", tiles[0])[mask] > 0).all()
        assert (read_band(scene, "SCL", tiles[0])[mask] > 0).all()


def _contents(folder: Path) -> dict[str, bytes]:
    """Every file but the GeoPackage, which carries the time of its making."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".gpkg" and path.name != ".sample")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_seed_always_gives_the_same_sample_and_another_seed_another(tmp_path: Path) -> None:
    one, two, other = (
        build_sample(tmp_path / name, seed=seed, **SMALL) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert _contents(one.folder) == _contents(two.folder)
    assert _contents(one.folder) != _contents(other.folder)
    frames = [gpd.read_file(entry.reference, engine="pyogrio") for entry in (one, two)]
    assert frames[0].equals(frames[1])


def test_a_complete_sample_is_reused_and_any_other_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "sample"
    told: list[float] = []
    assert not build_sample(folder, progress=told.append, **SMALL).reused
    assert told == sorted(told)
    assert told[-1] == 1.0
    item = next(folder.rglob("*.json"))
    first = item.stat().st_mtime_ns
    assert build_sample(folder, **SMALL).reused
    assert item.stat().st_mtime_ns == first
    assert not build_sample(folder, seed=8, **SMALL).reused
    shutil.rmtree(next((folder / "scenes").iterdir()))
    mended = build_sample(folder, seed=8, **SMALL)
    assert not mended.reused
    assert mended.acquisitions == SMALL["count"]
    assert [path.name for path in folder.parent.iterdir()] == ["sample"]


def test_a_broken_marker_means_an_incomplete_sample(tmp_path: Path) -> None:
    build_sample(tmp_path / "sample", **SMALL)
    (tmp_path / "sample" / ".sample").write_text("{")
    assert not build_sample(tmp_path / "sample", **SMALL).reused


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(SampleError, match=r"it holds something else. Give a new folder"):
        build_sample(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    assert not build_sample(tmp_path, **SMALL).reused
    assert json.loads((tmp_path / ".sample").read_text())["seed"] == 7


def test_every_cover_has_a_class_with_a_name() -> None:
    assert {cover.lulc_id for cover in COVERS.values()} == set(LULC_NAMES)
