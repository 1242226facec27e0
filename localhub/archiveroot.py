"""Where an archive lies, a folder or a folder of a bucket: its JSON documents, and the files that their hrefs lead to.

A document's href may lead to any file of its own archive and to no other.
"""

import os
import posixpath
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from localhub.objectstore import Access, Bucket

_READERS = 8
"""Documents of a bucket that are read at the same time."""
_PUBLIC_SCHEMES = frozenset({"https", "s3"})


class RootError(ValueError):
    """An archive cannot lie there, or an href leads nowhere or out of it; the text says which."""


@dataclass(frozen=True, slots=True)
class BucketFolder:
    """A folder of a bucket."""

    bucket: str
    prefix: str
    """Start of its keys: empty, or ending in a slash."""
    access: Access

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


class Root(Protocol):
    """Where an archive lies."""

    access: Access | None
    """How to read the files, None where it takes no key."""

    def documents(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name and the content of each JSON document, sorted by name."""

    def file(self, document: str, href: str) -> str:
        """Return what GDAL opens for the href of a document; raise RootError when it leads nowhere or outside."""


def root_of(place: Path | BucketFolder) -> Root:
    """Return the archive's root.

    Raises:
        RootError: there is no such folder.
        StoreError: the bucket cannot be listed.
    """
    return _Bucket(place) if isinstance(place, BucketFolder) else _Folder(place)


class _Folder:
    """A folder. Addresses of the web and of public buckets stand as they are."""

    access: Access | None = None

    def __init__(self, folder: Path) -> None:
        self._folder = Path(os.path.realpath(folder))
        if not self._folder.is_dir():
            raise RootError(f"The archive {folder} is not a folder. Give the folder that holds the STAC items.")

    def documents(self) -> Iterator[tuple[str, bytes]]:
        for path in sorted(self._folder.rglob("*.json")):
            try:
                content = path.read_bytes()
            except OSError as error:
                raise RootError(f"STAC item {path} cannot be used: it is not readable ({error}).") from error
            yield str(path), content

    def file(self, document: str, href: str) -> str:
        if urlsplit(href).scheme in _PUBLIC_SCHEMES:
            return href
        # strings: a Path for each of thousands of assets costs more than the check
        file = os.path.realpath(os.path.join(os.path.dirname(document), href))  # noqa: PTH118, PTH120
        if not Path(file).is_relative_to(self._folder):
            raise RootError(f"({href}) lies outside the archive's folder")
        if not os.path.isfile(file):  # noqa: PTH113
            raise RootError(f"({href}) is not there")
        return file


class _Bucket:
    """A folder of a bucket, listed once. Only its own keys count: others would be read with this archive's keys."""

    def __init__(self, place: BucketFolder) -> None:
        self.access: Access | None = place.access
        self._place = place
        self._bucket = Bucket(place.bucket, place.access)
        self._keys = frozenset(self._bucket.keys(place.prefix))

    def documents(self) -> Iterator[tuple[str, bytes]]:
        keys = sorted(key for key in self._keys if key.endswith(".json"))
        with ThreadPoolExecutor(_READERS) as readers:
            for key, content in zip(keys, readers.map(self._bucket.read, keys), strict=True):
                yield self._url(key), content

    def file(self, document: str, href: str) -> str:
        target = href if urlsplit(href).scheme else posixpath.join(posixpath.dirname(document), href)
        key = posixpath.normpath(target.removeprefix(self._url("")))
        if not target.startswith(self._url("")) or not key.startswith(self._place.prefix):
            raise RootError(f"({href}) lies outside the archive's folder {self._place}")
        if key not in self._keys:
            raise RootError(f"({href}) is not there")
        return f"/vsis3/{self._place.bucket}/{key}"

    def _url(self, key: str) -> str:
        return f"s3://{self._place.bucket}/{key}"
