"""Compression of chunks, configured as the Zarr specification has it."""

import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from numcodecs import get_codec
from numpy.typing import NDArray

Compressor = Mapping[str, Any]
"""Configuration of a codec: its id and its parameters."""

DEFAULT: Final[Compressor] = MappingProxyType(
    {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}
)
"""OpenAPI description, `BatchV2ZarrOutputArrayParameters.compressor`."""
_OFFERED = ("blosc", "bz2", "gzip", "lz4", "zlib", "zstd")


def completed(config: Compressor) -> dict[str, Any]:
    """Return a configuration with all its parameters, after a trial: codecs look at some only when they work.

    Raises:
        ValueError: the codec is not offered, or does not work with the parameters.
    """
    name = config.get("id")
    if name not in _OFFERED:
        raise ValueError(f"compressor {name!r} is not offered; choose one of {', '.join(_OFFERED)}")
    try:
        codec = get_codec(dict(config))
        codec.encode(bytes(16))
    except (ValueError, TypeError, AttributeError, OverflowError, RuntimeError, zlib.error) as error:
        raise ValueError(f"compressor {name!r} does not work with these parameters: {error}") from error
    return dict(codec.get_config())


def encoded(values: NDArray[Any], compressor: Compressor | None) -> bytes:
    """Return a chunk's bytes; None does not compress."""
    return values.tobytes() if compressor is None else bytes(get_codec(dict(compressor)).encode(values))


def decoded(data: bytes, compressor: Compressor) -> bytes:
    """Return what `encoded` was given, as bytes."""
    return bytes(get_codec(dict(compressor)).decode(data))
