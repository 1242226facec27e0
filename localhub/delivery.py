"""Where results go: the delivery URL's template, the bucket and the key of each file.

Rules: research note batch-v2, section 2.7 (documentation of `output.delivery`, and what existing consumers read).
"""

import re
from dataclasses import dataclass

from tasks.grid import Tile

PLACEHOLDER = re.compile(r"<([^<>/]*)>")
KNOWN = frozenset({"requestId", "tileName", "tileId", "outputId", "format"})
FOLDER_TEMPLATE = "<requestId>/<tileName>/<outputId>.<format>"
EXTENSIONS = {"image/tiff": "tif", "application/json": "json"}
"""File extension by response format: the documentation prints "tiff", every existing consumer reads "tif"."""

_S3_URL = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?", re.DOTALL)
_FILE_NAME = re.compile(r"[^/\\\x00-\x1f]+")


@dataclass(frozen=True, slots=True)
class Template:
    """A delivery URL: a bucket and the template of the keys in it."""

    bucket: str
    key: str
    """Key with placeholders, without a leading slash."""

    @property
    def root(self) -> str:
        """Prefix of the metadata files: the key's static part, cut at its last slash; empty or ending in a slash."""
        static = self.key.partition("<")[0]
        return static[: static.rfind("/") + 1]

    def path(self, request_id: str, tile: Tile, output_id: str, media_type: str) -> str:
        """Return the key of one result."""
        values = {
            "requestId": request_id,
            "tileName": tile.name,
            "tileId": str(tile.id),
            "outputId": output_id,
            "format": EXTENSIONS[media_type],
        }
        return PLACEHOLDER.sub(lambda match: values[match[1]], self.key)


def parse_s3_url(url: str) -> tuple[str, str]:
    """Return (bucket, key) of an s3:// URL; raise ValueError when it is none or its key climbs out of a folder."""
    match = _S3_URL.fullmatch(url)
    if match is None:
        raise ValueError(f"'{url}' is not an S3 URL; it should look like s3://bucket/folder")
    key = match[2] or ""
    if {".", ".."} & set(key.split("/")):
        raise ValueError(f"'{url}' has a '.' or '..' in its path; give the plain folder")
    return match[1], key


def parse_template(url: str, outputs: int) -> Template:
    """Return the template that a delivery URL stands for.

    A URL without placeholders is a folder. Raises ValueError when placeholders are unknown or do not make each of the
    tile's `outputs` files unique.
    """
    bucket, key = parse_s3_url(url)
    names = set(PLACEHOLDER.findall(key))
    if set("<>") & set(PLACEHOLDER.sub("", key)):
        raise ValueError(f"'{url}' has a '<' or '>' that belongs to no placeholder; known are {_listed(KNOWN)}")
    if not names:
        folder = f"{key.rstrip('/')}/" if key.strip("/") else ""
        return Template(bucket, folder + FOLDER_TEMPLATE)
    if unknown := names - KNOWN:
        placeholders = ", ".join(f"<{name}>" for name in sorted(unknown))
        raise ValueError(f"'{url}' has the unknown placeholder {placeholders}; known are {_listed(KNOWN)}")
    if not {"tileName", "tileId"} & names:
        raise ValueError(f"'{url}' lacks <tileName> or <tileId>: all tiles would be written to the same file")
    if outputs > 1 and "outputId" not in names:
        raise ValueError(f"'{url}' lacks <outputId>: all {outputs} outputs of a tile would be written to the same file")
    return Template(bucket, key)


def _listed(names: frozenset[str]) -> str:
    return ", ".join(f"<{name}>" for name in sorted(names))


def is_file_name(name: str) -> bool:
    """Tell whether a tile name or output id can be part of a key without leaving its folder."""
    return name not in {".", ".."} and _FILE_NAME.fullmatch(name) is not None
