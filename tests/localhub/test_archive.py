"""The archive finds the scenes that a request asks for, and names what is wrong with a folder or an item."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from shapely import Point, box
from shapely.geometry import mapping

from localhub.archive import Archive, ArchiveError

YEAR = (datetime(2019, 1, 1, tzinfo=UTC), datetime(2019, 12, 31, 23, 59, 59, tzinfo=UTC))
EVERYWHERE = box(-180, -90, 180, 90)


def _item(folder: Path, name: str, time: str = "2019-06-01T10:00:00Z", **changes: Any) -> Path:
    """Write a STAC item with one asset; `changes` replace its members, None removes one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.tif").write_bytes(b"raster")
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "sentinel-2-l1c",
        "geometry": mapping(box(15, 46, 16, 47)),
        "properties": {"datetime": time, "eo:cloud_cover": 10},
        "assets": {"B02": {"href": f"./{name}.tif"}},
        "links": [],
    }
    kept = {key: value for key, value in (item | changes).items() if value is not None}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(kept))
    return path


def _cloudy(time: str, cover: float) -> dict[str, Any]:
    return {"properties": {"datetime": time, "eo:cloud_cover": cover}}


def _ids(archive: Archive, *bounds: datetime, footprint: Any = EVERYWHERE, **rules: Any) -> list[str]:
    start, end = bounds or YEAR
    return [scene.id for scene in archive.search("sentinel-2-l1c", start, end, footprint, **rules)]


def test_items_are_found_in_folders_of_any_depth(tmp_path: Path) -> None:
    _item(tmp_path, "a")
    _item(tmp_path / "2019" / "06", "b", collection="sentinel-2-l2a")
    archive = Archive.open(tmp_path)
    assert {scene.id for scene in archive.scenes} == {"a", "b"}
    assert archive.collections == {"sentinel-2-l1c", "sentinel-2-l2a"}


def test_catalogues_and_collections_beside_the_items_are_passed_over(tmp_path: Path) -> None:
    _item(tmp_path, "a")
    (tmp_path / "catalog.json").write_text('{"type": "Catalog", "stac_version": "1.0.0"}')
    assert len(Archive.open(tmp_path).scenes) == 1


def test_a_scene_carries_what_its_item_says(tmp_path: Path) -> None:
    _item(tmp_path / "x", "a", "2019-06-01T12:00:00+02:00")
    scene = Archive.open(tmp_path).scenes[0]
    assert scene.datetime == datetime(2019, 6, 1, 10, tzinfo=UTC)
    assert scene.datetime.tzinfo is UTC
    assert scene.cloud_cover == 10
    assert scene.footprint.equals(box(15, 46, 16, 47))
    assert scene.assets == {"B02": str((tmp_path / "x" / "a.tif").resolve())}


def test_bands_are_those_of_every_scene_and_the_data_mask(tmp_path: Path) -> None:
    _item(tmp_path, "a", assets={"B02": {"href": "a.tif"}, "B03": {"href": "a.tif"}})
    _item(tmp_path, "b")
    assert Archive.open(tmp_path).bands("sentinel-2-l1c") == {"B02", "dataMask"}


@pytest.mark.parametrize(
    ("names", "properties"),
    [
        (("B04", "B08", "SCL"), {"s2:processing_baseline": "05.11"}),
        (("red", "nir", "scl"), {"s2:processing_baseline": "05.11", "earthsearch:boa_offset_applied": False}),
        (("B04_10m", "B08_10m", "SCL_20m"), {"processing:version": "05.11"}),
    ],
    ids=["Planetary Computer", "Earth Search", "Copernicus Data Space"],
)
def test_items_of_the_catalogues_that_people_copy_have_the_services_bands(
    tmp_path: Path, names: tuple[str, ...], properties: dict[str, Any]
) -> None:
    """Pictures and documents need not be there; the addition of the baseline is known."""
    assets: dict[str, Any] = {name: {"href": "a.tif", "roles": ["data", "reflectance"]} for name in names}
    assets["thumbnail"] = {"href": "absent.jpg", "roles": ["thumbnail"]}
    assets["granule_metadata"] = {"href": "absent.xml", "roles": ["metadata"]}
    described = {"datetime": "2022-06-01T10:00:00Z", **properties}
    _item(tmp_path, "a", collection="sentinel-2-l2a", assets=assets, properties=described)
    (scene,) = Archive.open(tmp_path).scenes
    assert scene.assets.keys() == {"B04", "B08", "SCL"}
    assert scene.added_dn == {"B04": 1000, "B08": 1000}


def test_of_a_band_at_several_resolutions_the_finest_is_read(tmp_path: Path) -> None:
    hrefs = {"B02_60m": "c.tif", "B02_10m": "a.tif", "B02_20m": "b.tif", "B05_60m": "c.tif", "B05_20m": "b.tif"}
    for file in set(hrefs.values()):
        tmp_path.joinpath(file).touch()
    _item(tmp_path, "a", assets={name: {"href": href} for name, href in hrefs.items()})
    (scene,) = Archive.open(tmp_path).scenes
    assert {band: Path(file).name for band, file in scene.assets.items()} == {"B02": "a.tif", "B05": "b.tif"}


def test_other_collections_keep_the_names_of_their_bands(tmp_path: Path) -> None:
    assets = {"red": {"href": "a.tif"}, "height_30m": {"href": "a.tif"}}
    _item(tmp_path, "a", collection="byoc-own", assets=assets)
    assert Archive.open(tmp_path).bands("byoc-own") == {"red", "height_30m", "dataMask"}


def test_the_time_range_includes_both_ends(tmp_path: Path) -> None:
    for day in (1, 2, 3, 4):
        _item(tmp_path, f"d{day}", f"2019-06-0{day}T10:00:00Z")
    archive = Archive.open(tmp_path)
    second, third = (datetime(2019, 6, day, 10, tzinfo=UTC) for day in (2, 3))
    assert _ids(archive, second, third) == ["d3", "d2"]
    assert _ids(archive, second + timedelta(seconds=1), third - timedelta(seconds=1)) == []
    east = timezone(timedelta(hours=2))
    assert _ids(archive, datetime(2019, 6, 2, 12, tzinfo=east), datetime(2019, 6, 2, 12, tzinfo=east)) == ["d2"]


def test_the_cloud_cover_limit_is_included_and_a_missing_cover_counts_as_none(tmp_path: Path) -> None:
    _item(tmp_path, "clear", properties={"datetime": "2019-06-01T10:00:00Z"})
    _item(tmp_path, "half", **_cloudy("2019-06-02T10:00:00Z", 50))
    _item(tmp_path, "full", **_cloudy("2019-06-03T10:00:00Z", 100))
    archive = Archive.open(tmp_path)
    assert _ids(archive, max_cloud_cover=50) == ["half", "clear"]
    assert _ids(archive, max_cloud_cover=49.9) == ["clear"]


def test_only_scenes_that_meet_the_footprint_are_found(tmp_path: Path) -> None:
    _item(tmp_path, "west", geometry=mapping(box(14, 46, 15, 47)))
    _item(tmp_path, "east", geometry=mapping(box(15, 46, 16, 47)))
    archive = Archive.open(tmp_path)
    assert _ids(archive, footprint=box(15.2, 46.2, 15.4, 46.4)) == ["east"]
    assert sorted(_ids(archive, footprint=Point(15, 46.5))) == ["east", "west"]
    assert _ids(archive, footprint=box(20, 46, 21, 47)) == []


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("mostRecent", ["late", "middle", "early"]),
        ("leastRecent", ["early", "middle", "late"]),
        ("leastCC", ["middle", "late", "early"]),
    ],
)
def test_scenes_come_in_the_order_asked_for_and_equal_cover_newest_first(
    tmp_path: Path, order: str, expected: list[str]
) -> None:
    _item(tmp_path, "early", **_cloudy("2019-05-01T10:00:00Z", 30))
    _item(tmp_path, "middle", **_cloudy("2019-06-01T10:00:00Z", 0))
    _item(tmp_path, "late", **_cloudy("2019-07-01T10:00:00Z", 30))
    assert _ids(Archive.open(tmp_path), order=order) == expected


def test_what_a_search_cannot_answer_is_refused(tmp_path: Path) -> None:
    _item(tmp_path, "a")
    archive = Archive.open(tmp_path)
    with pytest.raises(ArchiveError, match=r"'landsat' is not in the archive .* Choose one of: sentinel-2-l1c"):
        archive.search("landsat", *YEAR, EVERYWHERE)
    with pytest.raises(ArchiveError, match=r"order 'best' is not known. Choose one of: mostRecent"):
        _ids(archive, order="best")
    with pytest.raises(ArchiveError, match="no time zone"):
        _ids(archive, YEAR[0].replace(tzinfo=None), YEAR[1])


def test_a_folder_without_items_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="holds no STAC item"):
        Archive.open(tmp_path)
    with pytest.raises(ArchiveError, match="is not a folder"):
        Archive.open(tmp_path / "absent")


def _asset(href: Any) -> dict[str, Any]:
    return {"assets": {"B02": {"href": href}}}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"type": "FeatureCollection"}, "its type is 'FeatureCollection'"),
        ({"id": None}, "'id' is None"),
        ({"collection": ""}, "'collection' is ''"),
        ({"properties": {}}, "'properties' is {}"),
        ({"properties": {"datetime": None}}, "'datetime' is None"),
        ({"properties": {"datetime": "June"}}, "'June' is not an RFC 3339 time"),
        ({"properties": {"datetime": "2019-06-01T10:00:00"}}, "has no time zone"),
        (_cloudy("2019-06-01T10:00:00Z", 101), "eo:cloud_cover is 101"),
        ({"properties": {"datetime": "2019-06-01T10:00:00Z", "eo:cloud_cover": None}}, "eo:cloud_cover is None"),
        ({"geometry": {"type": "Blob", "coordinates": []}}, "its geometry is not GeoJSON"),
        ({"geometry": {"type": "Polygon", "coordinates": []}}, "its geometry is empty"),
        (
            {"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]}},
            "crosses itself",
        ),
        ({"assets": {}}, "'assets' is {}"),
        ({"assets": {"preview": {"href": "a.png", "roles": ["overview"]}}}, "none of its assets is a band"),
        ({"assets": {"B02": {}}}, "'B02' has no href"),
        (_asset("absent.tif"), r"'B02' \(absent.tif\) is not there"),
        (_asset("../secret.tif"), "lies outside the archive"),
        (_asset("/etc/hostname"), "lies outside the archive"),
        (_asset("/vsicurl/example.tif"), "lies outside the archive"),
        (_asset("x/../../secret.tif"), "lies outside the archive"),
        (_asset("link.tif"), "lies outside the archive"),
        (_asset("file:///etc/hostname"), "is not there"),
    ],
)
def test_a_broken_item_is_named_with_what_is_wrong(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    (tmp_path / "secret.tif").write_bytes(b"raster")
    archive = tmp_path / "archive"
    path = _item(archive, "a", **changes)
    (archive / "link.tif").symlink_to(tmp_path / "secret.tif")
    with pytest.raises(ArchiveError, match=reason) as caught:
        Archive.open(archive)
    assert str(path.resolve()) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_a_file_that_is_no_item_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(ArchiveError, match=r"bad\.json cannot be used"):
        Archive.open(tmp_path)


def test_an_id_stands_once_in_a_collection(tmp_path: Path) -> None:
    _item(tmp_path / "x", "a")
    _item(tmp_path / "y", "a", collection="sentinel-2-l2a")
    assert len(Archive.open(tmp_path).scenes) == 2
    _item(tmp_path / "z", "a")
    with pytest.raises(ArchiveError, match="'a' of sentinel-2-l1c stands 2 times"):
        Archive.open(tmp_path)


def test_remote_assets_keep_their_address(tmp_path: Path) -> None:
    _item(tmp_path, "a", **_asset("https://example.org/B02.tif"))
    assert Archive.open(tmp_path).scenes[0].assets["B02"] == "https://example.org/B02.tif"


def test_the_real_scenes_open_and_are_found(test_data: Path) -> None:
    archive = Archive.open(test_data / "s2-slovenia-2015")
    assert archive.bands("sentinel-2-l1c") >= {"B02", "B8A", "CLP", "CLM", "dataMask"}
    find: Callable[..., list[Any]] = archive.search
    summer = (datetime(2015, 7, 1, tzinfo=UTC), datetime(2015, 9, 30, tzinfo=UTC))
    square = box(14.552, 45.867, 14.563, 45.874)
    assert len(find("sentinel-2-l1c", *summer, square)) == 5
    assert [scene.datetime.day for scene in find("sentinel-2-l1c", *summer, square, 50.0, "leastRecent")] == [11, 30, 9]
