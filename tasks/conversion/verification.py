"""An EOPatch is read back from its place, by eo-learn, and compared with what was to be written.

Only then may what it was made of be deleted.
"""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from botocore.exceptions import BotoCoreError
from eolearn.core.eodata import EOPatch
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from tasks.conversion.delivery import TileFiles


def difference(patch: EOPatch, files: AbstractFileSystem, folder: str) -> str:
    """Read an EOPatch and tell how it differs from the one that was written; empty when it does not.

    One feature is held at a time.

    Args:
        patch: as it was written.
        files: where it lies.
        folder: its folder.

    Raises:
        OSError: the file system fails.
    """
    if isinstance(files, LocalFileSystem):
        return _difference_of(patch, folder)
    with tempfile.TemporaryDirectory(prefix="eopatch-") as local:
        files.get(folder, str(Path(local) / "patch"), recursive=True)
        return _difference_of(patch, str(Path(local) / "patch"))


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


def _difference_of(patch: EOPatch, folder: str) -> str:
    try:
        return _difference(patch, EOPatch.load(folder))
    except Exception as error:  # noqa: BLE001 - whatever eo-learn and the formats raise on damage
        return f"it cannot be read ({error!r})"


def _difference(patch: EOPatch, came: EOPatch) -> str:
    if set(came.get_features()) != set(patch.get_features()):
        return f"features are {came.get_features()}, expected {patch.get_features()}"
    if came.bbox != patch.bbox:
        return f"bbox is {came.bbox!r}, expected {patch.bbox!r}"
    if (came.timestamps or None) != (patch.timestamps or None):
        return "timestamps differ"
    for feature in patch.get_features():
        wanted, found = patch[feature], came[feature]
        if not feature[0].is_array():
            same = found | json.loads(json.dumps(wanted)) == found  # the marker has got the sizes of the files besides
        else:
            same = wanted.dtype == found.dtype and np.array_equal(wanted, found)
        if not same:
            return f"{feature[0].name}/{feature[1]} differs"
        del came[feature]
    return ""
