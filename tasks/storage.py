"""Where data lies: local folders and S3 prefixes behind one interface, and the credentials for them."""

import ipaddress
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

import fsspec
import s3fs
from botocore.exceptions import BotoCoreError, NoCredentialsError
from fsspec.implementations.local import LocalFileSystem
from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from tasks.errors import InvalidInput
from tasks.form import EmptyIs, FormModel

LOCALHUB_S3_KEYS = ("localhub", "localhub-secret")
"""Access key and secret of the object store that the stand-in starts; used on loopback only, and only by default."""
LOCALHUB_POLYGONS = "s3://eopatch-flow/reference/sample.gpkg"
"""Where the stand-in puts the land-cover polygons of its sample."""

S3_URL = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^<>*?\[\]]*)?$"
"""A bucket, and a prefix without the placeholders of delivery templates, and without patterns, which s3fs expands."""
S3_SETTINGS = {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 1}}
"""Bounds for each call to S3, seconds; s3fs repeats what timed out four times more by itself."""
PROBE_SETTINGS = {"connect_timeout": 5, "retries": {"max_attempts": 0}}
PROBE_SECONDS = 10.0
"""How long each step of the probe may take, for which a person waits. A server that stays silent on a PUT is not caught
by the client's own bounds: it waits for "100 Continue" without end."""


class S3Credentials(Block):
    """Keys for an S3 bucket, kept by Prefect and named, never passed, as a parameter."""

    _block_type_name = "S3 Credentials (eopatch-flow)"
    _block_type_slug = "eopatch-flow-s3-credentials"

    access_key: str = Field(title="Access key")
    secret_key: SecretStr = Field(title="Secret access key")


class Storage(FormModel):
    """Where Batch delivers its tiles, and where the EOPatches go."""

    model_config = ConfigDict(title="Storage")

    tiles_url: str = Field(
        default="s3://eopatch-flow/tiles",
        title="Tiles (S3)",
        description="S3 prefix that Batch delivers its GeoTIFFs to. Each request gets a folder of its own below it.",
        examples=["s3://my-bucket/batch"],
        pattern=S3_URL,
    )
    destination: str = Field(
        default="s3://eopatch-flow/eopatches",
        title="EOPatches",
        description="S3 prefix or local folder for EOPatches, ledger and report.",
        examples=["/data/eopatches", "s3://my-bucket/eopatches"],
        min_length=1,
    )
    endpoint_url: Annotated[str | None, EmptyIs("AWS", other="Address")] = Field(
        default="http://127.0.0.1:8333",
        title="S3 endpoint",
        description="URL of the S3 server; empty for AWS. The default is the one that localhub starts.",
        examples=["https://s3.example.org"],
        pattern=r"^(https?://[^/@]+(/.*)?)?$",  # no name and password
    )
    region: str | None = Field(
        default=None, title="S3 region", description="The bucket's region.", examples=["eu-central-1"]
    )
    credentials_block: str | None = Field(
        default=None,
        title="S3 credentials",
        description="Name of an 'S3 Credentials (eopatch-flow)' block; empty for AWS's usual chain.",
        examples=["my-bucket-keys"],
    )
    iam_role_arn: str | None = Field(
        default=None,
        title="Delivery role",
        description="ARN of a role that lets Sentinel Hub write the tiles; empty to hand it the access key.",
        examples=["arn:aws:iam::123456789012:role/batch-delivery"],
        pattern=r"^arn:.+",
    )

    @field_validator("tiles_url", "destination")
    @classmethod
    def _without_trailing_slash(cls, value: str) -> str:
        return value.rstrip("/") or "/"

    @field_validator("destination")
    @classmethod
    def _local_or_s3(cls, value: str) -> str:
        if ("://" in value or value.startswith("s3:")) and not re.match(S3_URL, value):
            raise ValueError(f"{value} is neither a local folder nor s3://bucket/prefix; choose one of these")
        return value

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if (self.destination + "/").startswith(self.tiles_url + "/"):
            raise ValueError(
                f"EOPatches would go to {self.destination}, inside of the tiles in {self.tiles_url}; choose two places."
            )
        return self


def is_loopback(url: str | None) -> bool:
    """Whether ``url`` names this very machine."""
    host = urlsplit(url or "").hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def s3_keys(storage: Storage) -> tuple[str, str] | None:
    """Access key and secret: of the block, of the environment, of the stand-in on loopback, or None for AWS's chain."""
    if storage.credentials_block:
        return _keys_of_block(storage.credentials_block)
    access_key, secret_key = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if access_key and secret_key:
        return access_key, secret_key
    return LOCALHUB_S3_KEYS if is_loopback(storage.endpoint_url) else None


def session_token(storage: Storage) -> str | None:
    """The token that belongs to temporary keys of the environment; None for lasting ones."""
    return None if storage.credentials_block else os.environ.get("AWS_SESSION_TOKEN") or None


def open_filesystem(url: str, storage: Storage) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system that ``url`` lies on, and the path on it.

    S3 listings are not cached: other processes write to the same bucket.
    """
    if not url.startswith("s3://"):
        return LocalFileSystem(auto_mkdir=True), os.path.abspath(os.path.expanduser(url))  # noqa: PTH100, PTH111
    return _s3(storage, S3_SETTINGS), url.removeprefix("s3://")


def read_file(url: str, storage: Storage) -> bytes:
    """Content of a small file; raises FileNotFoundError when there is none."""
    files, path = open_filesystem(url, storage)
    return bytes(files.cat_file(path))


def write_file(url: str, content: bytes, storage: Storage) -> None:
    """Write a small file, or replace it, as a whole: what is cut off leaves the file as it was."""
    files, path = open_filesystem(url, storage)
    if not isinstance(files, LocalFileSystem):  # an object appears when it is complete
        files.pipe_file(path, content)
        return
    part = Path(path).with_name(f".{Path(path).name}.part")
    files.pipe_file(str(part), content)
    part.replace(path)


def service_files(tiles_url: str, request_id: str, name: str) -> Iterator[str]:
    """Paths where the service may keep a file about a request, likeliest first.

    Below the static part of the delivery's URL (Sentinel Hub documentation, "Batch Processing API v2"), in the
    request's folder, or at the bucket's root.
    """
    prefix = tiles_url.removeprefix("s3://")
    yield f"{prefix}/{name}"
    yield f"{prefix}/{request_id}/{name}"
    if "/" in prefix:
        yield f"{prefix.partition('/')[0]}/{name}"


def check_writable(url: str, storage: Storage, what: str) -> None:
    """Check that ``url`` can be written, by a probe that leaves nothing behind.

    Args:
        url: local folder or S3 prefix.
        storage: endpoint and credentials for S3.
        what: how the message calls the place, such as "the destination".

    Raises:
        InvalidInput: the bucket is missing, the credentials are wrong, or the place refuses.
    """
    if not url.startswith("s3://"):
        _check_folder(Path(open_filesystem(url, storage)[1]), what)
        return
    endpoint = storage.endpoint_url or "AWS"
    try:
        _probe(storage, url.removeprefix("s3://"))
    except FileNotFoundError as error:
        raise InvalidInput(
            f"The bucket of {what} {url} does not exist at {endpoint}; create it, or name another."
        ) from error
    except PermissionError as error:
        raise InvalidInput(
            f"The credentials for {what} {url} at {endpoint} are wrong or do not allow to write there: "
            f"{str(error).rstrip('.')}. Check endpoint, access key and rights."
        ) from error
    except NoCredentialsError as error:
        raise InvalidInput(
            f"There are no credentials for {what} {url}: name a block as storage.credentials_block, or set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment."
        ) from error
    except (OSError, BotoCoreError) as error:
        raise InvalidInput(
            f"{_capital(what)} {url} at {endpoint} cannot be written: {_came(error)}. Check endpoint and network."
        ) from error


def check_parent(file: Path, option: str) -> None:
    """Check that a file of a command's option can be made.

    Raises:
        InvalidInput: there is no folder for it.
    """
    if not file.parent.is_dir():
        raise InvalidInput(f"{option}: the folder {file.parent} does not exist; make it, or name another.")


def _s3(storage: Storage, settings: dict[str, Any], **options: Any) -> s3fs.S3FileSystem:
    key, secret = s3_keys(storage) or (None, None)
    client = {"endpoint_url": storage.endpoint_url or None, "region_name": storage.region}
    return s3fs.S3FileSystem(
        key=key,
        secret=secret,
        token=session_token(storage) if key else None,
        client_kwargs=client,
        config_kwargs=settings,
        use_listings_cache=False,
        **options,
    )


def _probe(storage: Storage, prefix: str) -> None:
    files = _s3(storage, PROBE_SETTINGS, skip_instance_cache=True)
    files.retries = 1
    probe = f"{prefix}/.probe-{uuid.uuid4().hex}"
    files.pipe_file(probe, b"probe", timeout=PROBE_SECONDS)
    came = files.cat_file(probe, timeout=PROBE_SECONDS)
    files.rm_file(probe, timeout=PROBE_SECONDS)
    if came != b"probe":
        raise OSError("a probe came back changed")


def _check_folder(folder: Path, what: str) -> None:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):  # rights alone do not tell: of a read-only mount, or to root
            pass
    except OSError as error:
        raise InvalidInput(
            f"{_capital(what)} {folder} cannot be written: {existing} {_obstacle(existing, error)}. Choose another "
            "folder or change its rights."
        ) from error


def _came(error: Exception) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else str(error)


def _obstacle(existing: Path, error: OSError) -> str:
    return f"refuses a new file ({error.strerror})" if existing.is_dir() else "is a file"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _keys_of_block(name: str) -> tuple[str, str]:
    try:
        block = S3Credentials.load(name)
    except ValueError as error:
        raise InvalidInput(
            f"There is no 'S3 Credentials (eopatch-flow)' block named '{name}'; create it in the Prefect UI."
        ) from error
    assert isinstance(block, S3Credentials)  # noqa: S101 - load is also typed for coroutines
    return block.access_key, block.secret_key.get_secret_value()
