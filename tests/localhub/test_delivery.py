import pytest

from localhub.delivery import is_file_name, parse_s3_url, parse_template

TIFF, JSON = "image/tiff", "application/json"


@pytest.mark.parametrize(
    ("url", "path", "root"),
    [
        ("s3://bucket", "ID/T/B02.tif", ""),
        ("s3://bucket/", "ID/T/B02.tif", ""),
        ("s3://bucket/a/b", "a/b/ID/T/B02.tif", "a/b/"),
        ("s3://bucket/a/b/", "a/b/ID/T/B02.tif", "a/b/"),
        ("s3://bucket/p/<tileName>/<outputId>.<format>", "p/T/B02.tif", "p/"),
        ("s3://bucket/p/x-<tileName>-<outputId>.tiff", "p/x-T-B02.tiff", "p/"),
        ("s3://bucket/<requestId>/<tileName>_<outputId>", "ID/T_B02", ""),
    ],
)
def test_a_delivery_url_gives_the_files_path_and_the_metadatas_folder(url: str, path: str, root: str) -> None:
    template = parse_template(url, 2)
    assert (template.bucket, template.path("ID", "T", "B02", TIFF), template.root) == ("bucket", path, root)


def test_userdata_gets_the_extension_json() -> None:
    assert parse_template("s3://bucket/p", 2).path("ID", "T", "userdata", JSON) == "p/ID/T/userdata.json"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://bucket/p/<outputId>.tif", "lacks <tileName>"),
        ("s3://bucket/p/<tileName>.tif", "lacks <outputId>: all 2 outputs"),
        ("s3://bucket/p/<tileName>/<date>.tif", "unknown placeholder <date>"),
        ("s3://bucket/../other/<tileName>/<outputId>", r"has a '\.' or '\.\.' in its path"),
        ("https://bucket/p", "is not an S3 URL"),
        ("s3://b", "is not an S3 URL"),
        ("s3:///p", "is not an S3 URL"),
    ],
)
def test_a_template_that_cannot_keep_files_apart_is_refused(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_template(url, 2)


def test_one_output_needs_no_output_id() -> None:
    assert parse_template("s3://bucket/p/<tileName>.tif", 1).path("ID", "T", "B02", TIFF) == "p/T.tif"


def test_an_s3_url_is_a_bucket_and_a_key() -> None:
    assert parse_s3_url("s3://bucket/a/b.gpkg") == ("bucket", "a/b.gpkg")


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a\\b", "a\nb"])
def test_a_name_that_would_leave_its_folder_is_no_file_name(name: str) -> None:
    assert not is_file_name(name)


def test_names_of_tiles_are_file_names() -> None:
    assert is_file_name("33TVL_6_2")
    assert is_file_name("parcel 7.b")
