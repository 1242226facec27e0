"""Storage: which keys are used, where things go, and what a person is told when a place cannot be written."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from pydantic import SecretStr, ValidationError

from localhub.seaweed import SeaweedFS
from tasks import storage as module
from tasks.errors import InvalidInput
from tasks.storage import (
    LOCALHUB_S3_KEYS,
    S3Credentials,
    Storage,
    check_writable,
    is_loopback,
    open_filesystem,
    s3_keys,
    service_files,
    write_file,
)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)


def use_keys(monkeypatch: pytest.MonkeyPatch, access_key: str, secret_key: str) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret_key)


def told(url: str, storage: Storage) -> str:
    """The message that a place which cannot be written gives."""
    with pytest.raises(InvalidInput) as caught:
        check_writable(url, storage, "the destination")
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8333", True),
        ("http://localhost", True),
        ("http://[::1]:8333", True),
        ("http://127.8.9.1", True),
        ("https://s3.example.org", False),
        ("http://localhost.example.org", False),
        ("http://127.0.0.1@example.org", False),
        ("http://10.0.0.1", False),
        ("", False),
        (None, False),
    ],
)
def test_loopback_is_this_very_machine_and_no_name_that_looks_like_it(url: str | None, expected: bool) -> None:
    assert is_loopback(url) is expected


def test_keys_of_the_environment_come_before_those_of_the_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3_keys(Storage()) == LOCALHUB_S3_KEYS
    use_keys(monkeypatch, "mine", "secret")
    assert s3_keys(Storage()) == ("mine", "secret")


def test_the_stand_ins_keys_are_given_to_no_other_machine() -> None:
    assert s3_keys(Storage(endpoint_url="https://s3.example.org")) is None
    assert s3_keys(Storage(endpoint_url=None)) is None
    assert s3_keys(Storage(endpoint_url="")) is None


@pytest.mark.usefixtures("prefect_server")
def test_keys_of_a_named_block_come_first_and_stand_in_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    use_keys(monkeypatch, "mine", "secret")
    S3Credentials(access_key="of-the-block", secret_key=SecretStr("hidden-one")).save("bucket-keys", overwrite=True)
    storage = Storage(credentials_block="bucket-keys")
    assert s3_keys(storage) == ("of-the-block", "hidden-one")
    assert "hidden-one" not in f"{storage!r} {storage.model_dump_json()} {S3Credentials.load('bucket-keys')!r}"


@pytest.mark.usefixtures("prefect_server")
def test_a_block_that_does_not_exist_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"There is no 'S3 Credentials .* named 'nowhere'; create it"):
        s3_keys(Storage(credentials_block="nowhere"))


@pytest.mark.parametrize(
    ("tiles", "destination"),
    [
        ("s3://bucket/tiles", "s3://bucket/tiles"),
        ("s3://bucket/tiles/", "s3://bucket/tiles"),
        ("s3://bucket/tiles", "s3://bucket/tiles/eopatches/"),
        ("s3://bucket", "s3://bucket/eopatches"),
    ],
)
def test_eopatches_inside_of_the_tiles_are_refused(tiles: str, destination: str) -> None:
    with pytest.raises(ValidationError, match=r"inside of the tiles in s3://bucket.*; choose two places"):
        Storage(tiles_url=tiles, destination=destination)


def test_places_side_by_side_are_fine_and_lose_their_trailing_slashes() -> None:
    storage = Storage(tiles_url="s3://bucket/tiles//", destination="s3://bucket/tiles-of-mine/")
    assert (storage.tiles_url, storage.destination) == ("s3://bucket/tiles", "s3://bucket/tiles-of-mine")
    assert Storage(destination="/").destination == "/"


@pytest.mark.parametrize("destination", ["s3://", "s3:///x", "S3://bucket", "gs://bucket/x", "https://example.org/x"])
def test_a_destination_that_is_neither_local_nor_s3_is_refused(destination: str) -> None:
    with pytest.raises(ValidationError, match="neither a local folder nor s3://bucket/prefix"):
        Storage(destination=destination)


@pytest.mark.parametrize("tiles", ["bucket/tiles", "s3://B", "s3://bucket/<tileName>", "gs://bucket"])
def test_tiles_anywhere_but_below_a_bucket_are_refused(tiles: str) -> None:
    with pytest.raises(ValidationError, match="tiles_url"):
        Storage(tiles_url=tiles)


def test_an_endpoint_without_a_scheme_is_refused() -> None:
    with pytest.raises(ValidationError, match="endpoint_url"):
        Storage(endpoint_url="127.0.0.1:8333")


def test_a_misplaced_secret_is_not_shown() -> None:
    with pytest.raises(ValidationError) as caught:
        Storage.model_validate({"secret_key": "hush-hush"})
    assert "hush-hush" not in str(caught.value)


def test_local_paths_are_absolute_and_homes_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/of-mine")
    assert open_filesystem("a/b", Storage())[1] == str(tmp_path / "a/b")
    assert open_filesystem("~/b", Storage())[1] == "/home/of-mine/b"
    assert open_filesystem("s3://bucket/a", Storage())[1] == "bucket/a"


def test_the_services_files_are_looked_for_where_they_may_be() -> None:
    assert list(service_files("s3://bucket/a/b", "1", "x")) == ["bucket/a/b/x", "bucket/a/b/1/x", "bucket/x"]
    assert list(service_files("s3://bucket", "1", "x")) == ["bucket/x", "bucket/1/x"]


def test_a_probe_leaves_nothing_behind(
    s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_keys(monkeypatch, s3.access_key, s3.secret_key)
    check_writable(f"s3://{bucket}/a", Storage(endpoint_url=s3.endpoint_url), "the destination")
    check_writable(str(tmp_path / "new" / "folder"), Storage(), "the destination")
    assert s3_files.find(bucket) == []
    assert list(tmp_path.iterdir()) == []


def test_a_missing_bucket_is_named(s3: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    use_keys(monkeypatch, s3.access_key, s3.secret_key)
    text = told("s3://no-such-bucket/a", Storage(endpoint_url=s3.endpoint_url))
    bucket = f"s3://no-such-bucket/a does not exist at {s3.endpoint_url}"
    assert text == f"The bucket of the destination {bucket}; create it, or name another."


@pytest.mark.parametrize("access_key", ["test-access-key", "unknown-key"])
def test_wrong_keys_are_told_apart_from_other_faults_and_not_shown(
    s3: SeaweedFS, bucket: str, monkeypatch: pytest.MonkeyPatch, access_key: str
) -> None:
    use_keys(monkeypatch, access_key, "wrong-secret")
    text = told(f"s3://{bucket}/a", Storage(endpoint_url=s3.endpoint_url))
    assert "The credentials for the destination" in text
    assert text.endswith("Check endpoint, access key and rights.")
    assert "wrong-secret" not in text
    assert s3.secret_key not in text


def test_no_keys_at_all_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    storage = Storage(endpoint_url="https://s3.example.org")
    assert "There are no credentials for the destination s3://bucket/a" in told("s3://bucket/a", storage)


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_an_endpoint_that_nobody_serves_is_told_at_once(closed_port: int) -> None:
    began = time.monotonic()
    text = told("s3://bucket/a", Storage(endpoint_url=f"http://127.0.0.1:{closed_port}"))
    assert f"s3://bucket/a at http://127.0.0.1:{closed_port} cannot be written" in text
    assert text.endswith("Check endpoint and network.")
    assert time.monotonic() - began < 3


def test_an_endpoint_that_stays_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        text = told("s3://bucket/a", Storage(endpoint_url=f"http://127.0.0.1:{silent.getsockname()[1]}"))
    assert "no answer in time" in text
    assert time.monotonic() - began < 5


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    text = told(str(tmp_path / "file" / "a" / "b"), Storage())
    assert f"cannot be written: {tmp_path / 'file'} is a file" in text


def test_a_file_system_that_refuses_files_is_told_even_to_root() -> None:
    assert "cannot be written: /proc refuses a new file" in told("/proc/a/b", Storage())


WRITE = """
import resource, sys
from tasks.storage import Storage, write_file
write_file(sys.argv[1], b"old", Storage())
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_file(sys.argv[1], b"x" * 10_000, Storage())
"""
"""Replaces a file by one that does not fit."""


def test_a_file_that_cannot_be_replaced_as_a_whole_stays_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "report" / "picture.png"

    ended = subprocess.run([sys.executable, "-c", WRITE, str(target)], capture_output=True, text=True, check=False)

    assert "File too large" in ended.stderr
    assert target.read_bytes() == b"old"
    write_file(str(target), b"new", Storage())
    assert [(path.name, path.read_bytes()) for path in target.parent.iterdir()] == [("picture.png", b"new")]
