"""The object store: the few S3 calls that localhub makes, and errors that name the bucket and never a key."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from localhub.errors import StoreError

_CONFIG = Config(
    connect_timeout=5,
    read_timeout=60,
    retries={"total_max_attempts": 3, "mode": "standard"},
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach an object store."""

    endpoint_url: str | None
    """None: AWS."""
    key: str = field(repr=False)
    secret: str = field(repr=False)
    region: str | None = None

    def as_json(self) -> dict[str, str | None]:
        """Return the fields as a JSON object, secrets included."""
        return {"endpoint_url": self.endpoint_url, "key": self.key, "secret": self.secret, "region": self.region}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return the access that `as_json` has written."""
        return cls(**value)


@dataclass(frozen=True, slots=True)
class Bucket:
    """One bucket of an object store."""

    name: str
    access: Access

    def write(self, key: str, data: bytes) -> None:
        """Write an object from memory."""
        with self._explained("write to"):
            self._client.put_object(Bucket=self.name, Key=key, Body=data)

    def upload(self, key: str, path: Path) -> None:
        """Write an object from a file, in parts when it is large."""
        with self._explained("write to"):
            self._client.upload_file(str(path), self.name, key)

    def read(self, key: str) -> bytes:
        """Return an object's bytes."""
        with self._explained(f"read '{key}' in"):
            data: bytes = self._client.get_object(Bucket=self.name, Key=key)["Body"].read()
            return data

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that start with `prefix`."""
        with self._explained("list"):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix):
                yield from (entry["Key"] for entry in page.get("Contents", ()))

    @property
    def _client(self) -> Any:
        return _client(self.access)

    @contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "unknown")
            raise StoreError(f"Cannot {action} bucket '{self.name}': {code}. {_advice(code)}") from error
        except (BotoCoreError, boto3.exceptions.Boto3Error) as error:
            raise StoreError(f"Cannot {action} bucket '{self.name}': {_reason(error)}") from error


def _advice(code: str) -> str:
    if code in {"NoSuchBucket", "404"}:
        return "Create the bucket, or correct its name."
    if code in {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "403"}:
        return "Check the access key, its secret and its rights."
    return "See the object store's log."


def _reason(error: Exception) -> str:
    """Return the error's text; transfers wrap the store's answer, whose code is all that matters."""
    cause = error.__context__
    if isinstance(cause, ClientError):
        code = cause.response.get("Error", {}).get("Code", "unknown")
        return f"{code}. {_advice(code)}"
    return str(error)


@lru_cache(maxsize=32)
def _client(access: Access) -> Any:
    """Return a client; they are safe to share among threads and slow to make."""
    session = boto3.session.Session(
        aws_access_key_id=access.key,
        aws_secret_access_key=access.secret,
        region_name=access.region or "us-east-1",
    )
    return session.client("s3", endpoint_url=access.endpoint_url, config=_CONFIG)
