"""An eo-grow project as its users have one: a folder in the object store, a config file for each pipeline, its CLI."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import s3fs

from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub

RUN_SECONDS = 150
"""How long a pipeline may take: 10 s as a rule, a minute more where the first poll comes too soon."""

STRUCTURE = {"grids": "grids", "batch": "batch", "eopatches": "eopatches"}
"""The project's folders besides those that eo-grow presets (`input-data`, `logs`, `cache`)."""


@dataclass(frozen=True)
class Run:
    """What a pipeline left behind."""

    returncode: int
    output: str
    """Standard output and error."""
    finished: list[str]
    """Names of the EOPatches that eo-grow lists in `finished.json`."""
    failed: list[str]
    """Names of those in `failed.json`."""


@dataclass(frozen=True)
class EoGrowProject:
    """A project below s3://<bucket>/project whose service is `hub` and whose object store is `s3`."""

    programs: Path
    hub: LocalHub
    s3: SeaweedFS
    files: s3fs.S3FileSystem
    bucket: str
    scratch: Path
    """A local folder for the config files."""

    @property
    def root(self) -> str:
        """The project's folder, as `files` takes it."""
        return f"{self.bucket}/project"

    def run(self, pipeline: str, **config: Any) -> Run:
        """Run a pipeline, given by its import path, with the shared part of the config and `config`."""
        self._write_service_config()
        path = self.scratch / "pipeline.json"
        path.write_text(json.dumps({"pipeline": pipeline, **self._shared_config(), **config}))
        before = set(self._logs())
        done = subprocess.run(
            [self.programs / "eogrow", path],
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )
        names = {"finished": [], "failed": []} | {
            Path(log).stem: json.loads(self.files.cat_file(log)) for log in set(self._logs()) - before
        }
        return Run(done.returncode, done.stdout, **names)

    def _logs(self) -> list[str]:
        return [log for kind in ("finished", "failed") for log in self.files.glob(f"{self.root}/logs/*/{kind}.json")]

    def _shared_config(self) -> dict[str, Any]:
        return {
            "storage": {
                "manager": "eogrow.core.storage.StorageManager",
                "project_folder": f"s3://{self.root}",
                "structure": STRUCTURE,
            },
            "area": {
                "manager": "eogrow.core.area.CustomGridAreaManager",
                "grid_folder_key": "grids",
                "grid_filename": "grid.gpkg",
                "name_column": "identifier",
            },
            "logging": {"manager": "eogrow.core.logging.LoggingManager", "save_logs": True, "show_logs": True},
            "debug": True,  # EOPatches are made in the process itself instead of in a Ray cluster
        }

    def _write_service_config(self) -> None:
        """Write sentinelhub-py's own config file."""
        values = {
            "sh_base_url": self.hub.base_url,
            "sh_token_url": self.hub.token_url,
            "sh_client_id": self.hub.settings.client_id,
            "sh_client_secret": self.hub.settings.client_secret.get_secret_value(),
        }
        path = self.scratch / "sentinelhub" / "config.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(["[default-profile]", *(f'{name} = "{value}"' for name, value in values.items())]))

    def _environment(self) -> dict[str, str]:
        """Return the variables that boto3 (AWS_ENDPOINT_URL), GDAL (the last three) and sentinelhub-py look for."""
        inherited = ("PATH", "HOME", "TMPDIR", "LANG")
        return {name: os.environ[name] for name in inherited if name in os.environ} | {
            "XDG_CONFIG_HOME": str(self.scratch),
            "OAUTHLIB_INSECURE_TRANSPORT": "1",
            "AWS_ACCESS_KEY_ID": self.s3.access_key,
            "AWS_SECRET_ACCESS_KEY": self.s3.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.s3.endpoint_url,
            "AWS_S3_ENDPOINT": self.s3.endpoint_url.removeprefix("http://"),
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
        }
