"""The files of a source: one as a rule; the parts of a Shapefile, what is in a folder, what SQLite has set aside."""

import hashlib
import json
from pathlib import Path, PurePosixPath

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from tasks.eopatches import file_identity
from tasks.storage import Storage, open_filesystem

SHAPEFILE_NAMES = {".shp", ".shx", ".dbf"}
"""Parts of a Shapefile that GDAL opens as the whole."""
SHAPEFILE_PARTS = {".shp", ".shx", ".dbf", ".prj", ".cpg"}
"""Geometries, where they are, attributes, CRS, and the encoding of text (ESRI Shapefile Technical Description)."""


def identity_of_files(url: str, storage: Storage) -> tuple[int, str]:
    """Bytes of a source's files, and what tells their version: of one its own, of several a hash over all.

    Raises:
        FileNotFoundError: there is no such file.
    """
    files, path = open_filesystem(url, storage)
    parts = _parts(files, path)
    found = [file_identity(files, part) for part in parts]
    if len(found) == 1:
        return int(found[0]["size"]), str(found[0]["version"])
    named = [[name, one["size"], one["version"]] for name, one in zip(_names(parts, path), found, strict=True)]
    return sum(int(one["size"]) for one in found), hashlib.sha256(json.dumps(named).encode()).hexdigest()


def is_local(url: str, storage: Storage) -> bool:
    """Whether nothing needs to be fetched to read a source."""
    return isinstance(open_filesystem(url, storage)[0], LocalFileSystem)


def local_copy(url: str, storage: Storage, folder: Path) -> str:
    """Path of a source on the local disk; a remote one is copied into the folder with all its files."""
    files, path = open_filesystem(url, storage)
    if isinstance(files, LocalFileSystem):
        return path
    parts = _parts(files, path)
    for part, name in zip(parts, _names(parts, path), strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        files.get_file(part, str(folder / name))
    return str(folder / PurePosixPath(path).name)


def _parts(files: AbstractFileSystem, path: str) -> list[str]:
    """Paths of the files, in ascending order."""
    if files.info(path, refresh=True)["type"] == "directory":
        inside = files.find(path, maxdepth=1)
        return sorted(one for one in inside if not one.endswith(".lock")) or [path]  # locks of ArcGIS tell its readers
    given = PurePosixPath(path)
    if given.suffix.lower() in SHAPEFILE_NAMES:
        beside = map(PurePosixPath, files.ls(str(given.parent), detail=False))
        return sorted(str(one) for one in beside if one.stem == given.stem and one.suffix.lower() in SHAPEFILE_PARTS)
    log = Path(f"{path}-wal")  # SQLite's, of what was written but not yet put into the file
    open_elsewhere = isinstance(files, LocalFileSystem) and log.exists() and log.stat().st_size > 0
    return [path, str(log)] if open_elsewhere else [path]


def _names(parts: list[str], path: str) -> list[str]:
    """Names of the files as seen from where the source lies."""
    return [str(PurePosixPath(part).relative_to(PurePosixPath(path).parent)) for part in parts]
