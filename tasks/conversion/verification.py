"""An EOPatch is read back from its place and compared with what was to be written, array by array, part by part.

Only then may what it was made of be deleted. Features, dates and place are read by eo-learn; the arrays, which may be
larger than memory, as NumPy and zarr define their formats, and their numbers are known by hash (SHA-256).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from botocore.exceptions import BotoCoreError
from eolearn.core.constants import FeatureType
from eolearn.core.eodata import EOPatch
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from tasks.arrayfiles import FileFormat, array_path, stored_hashes
from tasks.conversion.delivery import TileFiles
from tasks.scratch import scratch_folder


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array as it was written.

    Attributes:
        shape: of the array.
        dtype: of the array.
        temporal: whether its first axis is the time.
        hashes: of its parts, see `tasks.arrayfiles.save_array`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    temporal: bool
    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class PatchContent:
    """An EOPatch as it was written.

    Attributes:
        rest: all of it but the arrays.
        arrays: by feature.
        file_format: of the arrays.
    """

    rest: EOPatch
    arrays: Mapping[tuple[FeatureType, str], StoredArray]
    file_format: FileFormat


def difference(written: PatchContent, files: AbstractFileSystem, folder: str) -> str:
    """Read an EOPatch and tell how it differs from the one that was written; empty when it does not.

    Args:
        written: the EOPatch as it was written.
        files: where it lies.
        folder: its folder.

    Raises:
        OSError: the file system fails.
    """
    if isinstance(files, LocalFileSystem):
        return _difference_of(written, folder)
    with scratch_folder() as local:
        files.get(folder, str(local / "patch"), recursive=True)
        return _difference_of(written, str(local / "patch"))


def delete_raw(delivered: TileFiles, source: AbstractFileSystem) -> str:
    """Delete what was delivered for a tile; why that failed, or nothing: a file too many is no reason to fail."""
    try:
        for path in _paths(delivered):
            source.rm_file(path)
    except FileNotFoundError:
        return ""
    except (OSError, BotoCoreError) as error:
        return f"Raw files of the tile could not be deleted: {error}"
    return ""


def _paths(delivered: TileFiles) -> Iterable[str]:
    return [*delivered.outputs.values(), *([delivered.userdata] if delivered.userdata else [])]


def _difference_of(written: PatchContent, folder: str) -> str:
    try:
        return _difference(written, Path(folder))
    except Exception as error:  # noqa: BLE001 - whatever eo-learn and the formats raise on damage
        return f"it cannot be read ({error!r})"


def _difference(written: PatchContent, folder: Path) -> str:
    came, rest = EOPatch.load(str(folder)), written.rest
    expected = {*rest.get_features(), *written.arrays}
    if set(came.get_features()) != expected:
        return f"features are {came.get_features()}, expected {sorted(expected)}"
    if came.bbox != rest.bbox:
        return f"bbox is {came.bbox!r}, expected {rest.bbox!r}"
    if (came.timestamps or None) != (rest.timestamps or None):
        return "timestamps differ"
    for feature in rest.get_features():
        wanted, found = rest[feature], came[feature]
        if found | json.loads(json.dumps(wanted)) != found:  # the marker has got the sizes of the files besides
            return f"{feature[0].name}/{feature[1]} differs"
    for (kind, name), array in written.arrays.items():
        path = array_path(folder / kind.value / name, written.file_format)
        if stored_hashes(path, array.shape, array.dtype, temporal=array.temporal) != list(array.hashes):
            return f"{kind.name}/{name} differs"
    return ""
