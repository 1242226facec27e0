"""Where data lies: local folders and S3 prefixes behind one interface, and the credentials for them."""

import ipaddress
import os
import uuid
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import fsspec
import s3fs
from botocore.exceptions import BotoCoreError
from fsspec.implementations.local import LocalFileSystem
from prefect.blocks.core import Block
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from tasks.errors import InvalidInput

LOCALHUB_S3_KEYS = ("localhub", "localhub-secret")
"""Access key and secret of the object store that the stand-in starts; used on loopback only, and only by default."""


DENIED = (
    "The credentials for {url} are wrong or do not allow to {action} it ({came}). Check the access key and its rights."
)


class S3Credentials(Block):
    """Keys for an S3 bucket, kept by Prefect and named, never passed, as a parameter."""

    _block_type_name = "S3 Credentials (eopatch-flow)"
    _block_type_slug = "eopatch-flow-s3-credentials"

    access_key: str = Field(title="Access key")
    secret_key: SecretStr = Field(title="Secret access key")


class Storage(BaseModel):
    """Where Batch delivers its tiles, and where the EOPatches go."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Storage")

    tiles_url: str = Field(
        default="s3://eopatch-flow/tiles",
        title="Tiles (S3)",
        description="S3 prefix that Batch delivers its GeoTIFFs to. Each request gets a folder of its own below it.",
        examples=["s3://my-bucket/batch"],
        pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^<>]*)?$",
    )
    destination: str = Field(
        default="eopatches",
        title="EOPatches",
        description="Local folder or S3 prefix for EOPatches, ledger and report.",
        examples=["/data/eopatches", "s3://my-bucket/eopatches"],
        min_length=1,
    )
    endpoint_url: str | None = Field(
        default="http://127.0.0.1:8333",
        title="S3 endpoint",
        description="URL of the S3 server; empty for AWS. The default is the one that localhub starts.",
        examples=["https://s3.example.org"],
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


def open_filesystem(url: str, storage: Storage) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system that ``url`` lies on, and the path on it.

    S3 listings are not cached: other processes write to the same bucket.
    """
    if not url.startswith("s3://"):
        return LocalFileSystem(auto_mkdir=True), os.path.abspath(os.path.expanduser(url))  # noqa: PTH100, PTH111
    key, secret = s3_keys(storage) or (None, None)
    client = {"endpoint_url": storage.endpoint_url or None, "region_name": storage.region}
    files = s3fs.S3FileSystem(key=key, secret=secret, client_kwargs=client, use_listings_cache=False)
    return files, url.removeprefix("s3://")


def check_writable(url: str, storage: Storage, what: str) -> None:
    """Check that ``url`` can be written.

    On S3 a probe is written, read and deleted. Of a local folder only the rights are looked at: nothing is made.

    Args:
        url: local folder or S3 prefix.
        storage: endpoint and credentials for S3.
        what: how the message calls the place, such as "the destination".

    Raises:
        InvalidInput: the bucket is missing, the credentials are wrong, or the place refuses.
    """
    files, path = open_filesystem(url, storage)
    if isinstance(files, LocalFileSystem):
        _check_rights(Path(path), what)
        return
    try:
        _probe(files, path)
    except FileNotFoundError as error:
        raise InvalidInput(f"The bucket of {what} {url} does not exist; create it, or name another.") from error
    except PermissionError as error:
        raise InvalidInput(
            f"The credentials for {what} {url} are wrong or do not allow to write there: {str(error).rstrip('.')}. "
            "Check the access key and its rights."
        ) from error
    except (OSError, BotoCoreError) as error:
        raise InvalidInput(f"{_capital(what)} {url} cannot be written: {error}. Check endpoint and network.") from error


def _probe(files: fsspec.AbstractFileSystem, path: str) -> None:
    probe = f"{path}/.probe-{uuid.uuid4().hex}"
    files.pipe_file(probe, b"probe")
    came = files.cat_file(probe)
    files.rm_file(probe)
    if came != b"probe":
        raise OSError("a probe came back changed")


def _check_rights(folder: Path, what: str) -> None:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return
    came = "is not writable" if existing.is_dir() else "is a file"
    raise InvalidInput(
        f"{_capital(what)} {folder} cannot be written: {existing} {came}. Choose another folder or change its rights."
    )


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
