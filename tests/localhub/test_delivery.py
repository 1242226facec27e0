"""The rules of delivery URLs, one test for each, by the rule's name."""

import pytest

from localhub.delivery import is_file_name, parse_s3_url, parse_template
from tasks.grid import Tile

TIFF, JSON = "image/tiff", "application/json"
TILE = Tile("T", 32633, (0.0, 0.0, 10.0, 10.0), 1, 1, id=42)


def path(url: str, outputs: int = 2, media_type: str = TIFF) -> str:
    """Where the template puts the output B02 of a tile."""
    return parse_template(url, outputs).path("ID", TILE, "B02", media_type)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket", "ID/T/B02.tif"),
        ("s3://bucket/", "ID/T/B02.tif"),
        ("s3://bucket/a/b", "a/b/ID/T/B02.tif"),
        ("s3://bucket/a/b/", "a/b/ID/T/B02.tif"),
    ],
)
def test_a_url_without_placeholders_is_a_folder(url: str, expected: str) -> None:
    assert (parse_template(url, 2).bucket, path(url)) == ("bucket", expected)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/p/<tileName>/<outputId>.<format>", "p/T/B02.tif"),
        ("s3://bucket/p/x-<tileName>-<outputId>.tiff", "p/x-T-B02.tiff"),
        ("s3://bucket/<requestId>/<tileName>_<outputId>", "ID/T_B02"),
        ("s3://bucket/<tileName>/<tileName>_<tileId>_<outputId>", "T/T_42_B02"),
    ],
)
def test_placeholders_are_replaced_wherever_they_stand(url: str, expected: str) -> None:
    assert path(url) == expected


def test_the_formats_extension_is_tif_or_json() -> None:
    assert path("s3://bucket/<tileName>/<outputId>.<format>", media_type=TIFF) == "T/B02.tif"
    assert path("s3://bucket/<tileName>/<outputId>.<format>", media_type=JSON) == "T/B02.json"


def test_the_tile_id_may_stand_for_the_tile_name() -> None:
    assert path("s3://bucket/<tileId>/<outputId>.<format>") == "42/B02.tif"


@pytest.mark.parametrize("url", ["s3://bucket/p/<outputId>.tif", "s3://bucket/<requestId>/<outputId>.<format>"])
def test_a_template_needs_the_tile_name_or_the_tile_id(url: str) -> None:
    with pytest.raises(ValueError, match="lacks <tileName> or <tileId>: all tiles would be written to the same file"):
        parse_template(url, 1)


@pytest.mark.parametrize("url", ["s3://bucket/p/<tileName>.tif", "s3://bucket/<tileId>.<format>"])
def test_a_template_needs_the_output_id_when_there_is_more_than_one_output(url: str) -> None:
    with pytest.raises(ValueError, match="lacks <outputId>: all 2 outputs of a tile"):
        parse_template(url, 2)


def test_a_template_for_one_output_needs_no_output_id() -> None:
    assert path("s3://bucket/p/<tileName>.tif", outputs=1) == "p/T.tif"


@pytest.mark.parametrize("placeholder", ["date", "TileName", "tilename", "", "bandId", "tileName "])
def test_an_unknown_placeholder_is_refused_with_the_known_ones(placeholder: str) -> None:
    known = "<format>, <outputId>, <requestId>, <tileId>, <tileName>"
    with pytest.raises(ValueError, match=f"the unknown placeholder <{placeholder}>; known are {known}"):
        parse_template(f"s3://bucket/p/<tileName>/<outputId>/<{placeholder}>.tif", 2)


@pytest.mark.parametrize(
    "key", ["<tileName/<outputId>.tif", "<tileName>/<outputId", "tileName>", "<tile/Name>", "<<tileName>>"]
)
def test_a_bracket_of_no_placeholder_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="has a '<' or '>' that belongs to no placeholder"):
        parse_template(f"s3://bucket/{key}", 1)


@pytest.mark.parametrize(
    "key", ["../other/<tileName>/<outputId>", "a/../../b", "..", ".", "a/./<tileName>/<outputId>", "<tileName>/.."]
)
def test_a_template_must_not_climb_out_of_its_folder(key: str) -> None:
    with pytest.raises(ValueError, match=r"has a '\.' or '\.\.' in its path"):
        parse_template(f"s3://bucket/{key}", 2)


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("s3://bucket", ""),
        ("s3://bucket/a/b", "a/b/"),
        ("s3://bucket/p/<tileName>/<outputId>.<format>", "p/"),
        ("s3://bucket/p/x-<tileName>-<outputId>.tiff", "p/"),
        ("s3://bucket/p/q/<requestId>/x/<tileName>/<outputId>", "p/q/"),
        ("s3://bucket/<tileName>_<outputId>", ""),
        ("s3://bucket/run-<requestId>/<tileId>/<outputId>.tif", ""),
    ],
)
def test_the_metadata_lie_in_the_static_folder_ahead_of_the_first_placeholder(url: str, root: str) -> None:
    assert parse_template(url, 2).root == root


@pytest.mark.parametrize("url", ["https://bucket/p", "s3://b", "s3:///p", "s3://Bucket/p", "bucket/p", "gs://bucket"])
def test_a_delivery_url_must_be_of_s3_with_a_valid_bucket(url: str) -> None:
    with pytest.raises(ValueError, match=r"is not an S3 URL; it should look like s3://bucket/folder"):
        parse_template(url, 2)


def test_an_s3_url_is_a_bucket_and_a_key() -> None:
    assert parse_s3_url("s3://bucket/a/b.gpkg") == ("bucket", "a/b.gpkg")


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a\\b", "a\nb"])
def test_a_name_that_would_leave_its_folder_is_no_file_name(name: str) -> None:
    assert not is_file_name(name)


def test_names_of_tiles_are_file_names() -> None:
    assert is_file_name("33TVL_6_2")
    assert is_file_name("parcel 7.b")
