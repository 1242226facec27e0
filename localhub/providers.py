"""What the service's two deployments do differently: `aws`, and `cdse`, the Copernicus Data Space Ecosystem.

Sources: the two published OpenAPI descriptions and band tables, as noted in the research notes batch-v2, section 2,
and evalscript-v3, section 6.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from localhub.archive import ArchiveSource
from localhub.archiveroot import BucketFolder
from localhub.delivery import parse_s3_url
from localhub.objectstore import Access
from localhub.settings import Provider, Settings

S2CLOUDLESS = frozenset({"CLM", "CLP"})
"""Bands that one provider computes by s2cloudless and the other does not have."""

COG_BLOCK_PX: Mapping[Provider, int] = MappingProxyType({"aws": 256, "cdse": 1024})
"""Default of `cogParameters.blockxsize` and `blockysize`."""


def archive_source(settings: Settings) -> ArchiveSource:
    """Return where the archive lies, and which of its bands the provider lacks."""
    return ArchiveSource(_place(settings), S2CLOUDLESS if settings.provider == "cdse" else frozenset())


def _place(settings: Settings) -> Path | BucketFolder:
    if isinstance(settings.archive, Path):
        return settings.archive
    bucket, key = parse_s3_url(settings.archive)
    access = Access(settings.s3_endpoint_url, settings.s3_access_key, settings.s3_secret_key.get_secret_value())
    prefix = key.strip("/")
    return BucketFolder(bucket, f"{prefix}/" if prefix else "", access)
