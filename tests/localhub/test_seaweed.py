import pytest
import s3fs

from localhub.seaweed import ObjectStoreError, SeaweedFS


def test_objects_survive_a_restart_of_the_server(tmp_path):
    keys = ("someone", "their-secret")
    with SeaweedFS(tmp_path, *keys) as first:
        files = _files(first)
        files.mkdir("kept")
        files.pipe("kept/a.txt", b"still here")
    with SeaweedFS(tmp_path, *keys) as second:
        assert _files(second).cat("kept/a.txt") == b"still here"


def test_a_wrong_secret_is_refused(s3):
    intruder = s3fs.S3FileSystem(key=s3.access_key, secret="wrong", client_kwargs={"endpoint_url": s3.endpoint_url})
    with pytest.raises(PermissionError):
        intruder.ls("")


def test_a_missing_bucket_is_not_made_by_writing_to_it(s3_files):
    with pytest.raises(FileNotFoundError):
        s3_files.pipe("no-such-bucket/a.txt", b"x")


def test_a_taken_port_is_said(s3, tmp_path):
    with pytest.raises(ObjectStoreError, match=f"Port {s3.port} for S3 is taken"):
        SeaweedFS(tmp_path, "a", "b", port=s3.port).start()


def _files(server: SeaweedFS) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(
        key=server.access_key,
        secret=server.secret_key,
        client_kwargs={"endpoint_url": server.endpoint_url},
        skip_instance_cache=True,
    )
