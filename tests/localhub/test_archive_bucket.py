"""An archive in a bucket is read like one in a folder; no href leads out of it, and its keys stay where they belong."""

import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import s3fs
from pydantic import SecretStr, ValidationError
from rasterio.env import get_gdal_config
from shapely.geometry import box, mapping

from localhub.archive import Archive, ArchiveError
from localhub.archiveroot import BucketFolder
from localhub.objectstore import Access
from localhub.providers import archive_source
from localhub.reader import read_band, read_data_mask
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from localhub.settings import Settings
from tasks.grid import Tile
from tests.localhub.batch_requests import RED, access, client_of, process_request, session_of, wait_for

TILE = Tile("tile", 32633, (465200.0, 5079300.0, 466100.0, 5080200.0), 45, 45)
"""Within the real scenes, 20 m."""


@pytest.fixture(scope="module")
def files(s3: SeaweedFS) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(
        key=s3.access_key,
        secret=s3.secret_key,
        client_kwargs={"endpoint_url": s3.endpoint_url},
        use_listings_cache=False,
    )


@pytest.fixture(scope="module")
def store(s3: SeaweedFS, files: s3fs.S3FileSystem, scenes: Path) -> Iterator[BucketFolder]:
    """The real scenes in a folder of a bucket, beside other things."""
    name = f"archive-{uuid.uuid4().hex[:12]}"
    files.mkdir(name)
    files.put(str(scenes), f"{name}/archives/s2", recursive=True)
    files.pipe(f"{name}/archives/s2-of-others/item.json", b"not ours")
    yield BucketFolder(name, "archives/s2/", Access(s3.endpoint_url, s3.access_key, s3.secret_key))
    files.rm(name, recursive=True)


@pytest.fixture(scope="module")
def archive(store: BucketFolder) -> Archive:
    return Archive.open(store)


def test_it_has_the_scenes_that_the_folder_has(archive: Archive, scenes: Path) -> None:
    folder = Archive.open(scenes)
    assert archive.scenes == tuple(
        replace(scene, assets=there.assets, access=there.access)
        for scene, there in zip(folder.scenes, archive.scenes, strict=True)
    )
    assert [scene.assets.keys() for scene in archive.scenes] == [scene.assets.keys() for scene in folder.scenes]


def test_every_band_is_read_as_from_the_folder(archive: Archive, scenes: Path) -> None:
    theirs, ours = Archive.open(scenes).scenes[0], archive.scenes[0]
    assert len(ours.assets) > 10
    for band in ours.assets:
        np.testing.assert_array_equal(read_band(ours, band, TILE), read_band(theirs, band, TILE))
    assert read_data_mask(ours, TILE).any()


def test_keys_are_known_to_nobody_when_the_reading_is_over(archive: Archive) -> None:
    read_data_mask(archive.scenes[0], TILE)
    assert {name for name in os.environ if name.startswith("AWS_S")} == set()
    for option in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_S3_ENDPOINT"):
        assert get_gdal_config(option) is None


def test_wrong_keys_are_told_without_being_shown(store: BucketFolder, archive: Archive) -> None:
    wrong = Access(store.access.endpoint_url, store.access.key, "wrong-secret-key")
    with pytest.raises(ArchiveError, match=f"Cannot list bucket '{store.bucket}': SignatureDoesNotMatch") as caught:
        Archive.open(replace(store, access=wrong))
    assert "secret-key" not in str(caught.value) + repr(caught.value.__cause__)
    scene = replace(archive.scenes[1], access=wrong)
    with pytest.raises(ArchiveError, match=r"Band B02 of scene .* cannot be read") as caught:
        read_band(scene, "B02", TILE)
    assert "secret-key" not in str(caught.value) + repr(scene)


def put_item(files: s3fs.S3FileSystem, bucket: str, href: str) -> None:
    """An archive in the folder `own` of one item with one asset, beside a file of somebody else."""
    item = {
        "type": "Feature",
        "id": "a",
        "collection": "sentinel-2-l1c",
        "geometry": mapping(box(15, 46, 16, 47)),
        "properties": {"datetime": "2019-06-01T10:00:00Z"},
        "assets": {"B02": {"href": href}},
    }
    files.pipe(f"{bucket}/own/items/a.json", json.dumps(item).encode())
    for key in ("own/items/a.tif", "own/b.tif", "secret.tif", "own-too/secret.tif"):
        files.pipe(f"{bucket}/{key}", b"raster")


@pytest.mark.parametrize(
    "href",
    [
        "../../secret.tif",
        "x/../../../secret.tif",
        "../../own-too/secret.tif",
        "/secret.tif",
        "/vsis3/other/secret.tif",
        "/etc/hostname",
        "s3://{bucket}/secret.tif",
        "s3://{bucket}/own/../secret.tif",
        "s3://{bucket}/own-too/secret.tif",
        "s3://other/own/b.tif",
        "https://example.org/b.tif",
        "file:///etc/hostname",
        "http://127.0.0.1/b.tif",
    ],
)
def test_no_href_leads_out_of_the_archive(s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str, href: str) -> None:
    put_item(s3_files, bucket, href.format(bucket=bucket))
    place = BucketFolder(bucket, "own/", Access(s3.endpoint_url, s3.access_key, s3.secret_key))
    with pytest.raises(ArchiveError, match=f"s3://{bucket}/own/items/a.json cannot be used: .* lies outside"):
        Archive.open(place)


@pytest.mark.parametrize(
    ("href", "key"), [("./a.tif", "items/a.tif"), ("../b.tif", "b.tif"), ("s3://{bucket}/own/b.tif", "b.tif")]
)
def test_an_href_may_lead_anywhere_within(
    s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str, href: str, key: str
) -> None:
    put_item(s3_files, bucket, href.format(bucket=bucket))
    place = BucketFolder(bucket, "own/", Access(s3.endpoint_url, s3.access_key, s3.secret_key))
    (scene,) = Archive.open(place).scenes
    assert scene.assets == {"B02": f"/vsis3/{bucket}/own/{key}"}
    s3_files.rm(f"{bucket}/own/{key}")
    with pytest.raises(ArchiveError, match="is not there"):
        Archive.open(place)


def test_the_setting_is_a_folder_or_an_s3_url(tmp_path: Path) -> None:
    for archive, place in (
        (tmp_path, tmp_path),
        (str(tmp_path), tmp_path),
        ("s3://some-bucket/a/b", BucketFolder("some-bucket", "a/b/", Access(None, "key", "secret"))),
        ("s3://some-bucket", BucketFolder("some-bucket", "", Access(None, "key", "secret"))),
    ):
        settings = Settings(data_dir=tmp_path, archive=archive, s3_access_key="key", s3_secret_key=SecretStr("secret"))
        assert archive_source(settings).place == place
        again = Settings.model_validate_json(settings.model_dump_json())
        assert again.archive == settings.archive
    for wrong in ("s3://B", "s3:/bucket", "s3://some-bucket/../other"):
        with pytest.raises(ValidationError, match="archive"):
            Settings(data_dir=tmp_path, archive=wrong)


@pytest.fixture(scope="module")
def bucket_hub(
    hub_settings: Settings, store: BucketFolder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalHub]:
    """A localhub whose archive lies in the bucket."""
    own = {
        "data_dir": tmp_path_factory.mktemp("bucket-hub"),
        "archive": f"s3://{store.bucket}/archives/s2",
        "workers": 1,
    }
    settings = hub_settings.model_copy(update=own)
    with LocalHub(settings) as running:
        yield running


def processed(hub: LocalHub) -> requests.Response:
    request = process_request(RED, bbox=[14.555, 45.868, 14.560, 45.872])
    return session_of(hub).post(f"{hub.base_url}/api/v1/process", json=request)


def found(hub: LocalHub) -> Any:
    search = {"collections": ["sentinel-2-l1c"], "datetime": "../.."}
    answer = session_of(hub).post(f"{hub.base_url}/api/v1/catalog/1.0.0/search", json=search).json()
    return [item["id"] for item in answer["features"]]


def test_the_whole_service_works_over_it(
    hub: LocalHub,
    bucket_hub: LocalHub,
    s3: SeaweedFS,
    s3_files: s3fs.S3FileSystem,
    bucket: str,
    whole_scene: str,
) -> None:
    assert found(bucket_hub) == found(hub) != []
    assert processed(bucket_hub).content == processed(hub).content
    for running in (hub, bucket_hub):
        client = client_of(running)
        delivery = access(s3, f"s3://{bucket}/{running.settings.workers}/<tileName>.<format>")
        request = client.create(
            process_request(RED), client.geopackage_input(access(s3, whole_scene)), client.raster_output(delivery)
        )
        client.start_job(request)
        assert wait_for(client, request).status.value == "DONE"
    assert s3_files.cat_file(f"{bucket}/1/whole.tif") == s3_files.cat_file(f"{bucket}/2/whole.tif")
    assert s3.secret_key not in bucket_hub.log_path.read_text()
