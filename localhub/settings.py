"""What a localhub needs to know before it starts."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from localhub.delivery import parse_s3_url
from localhub.engine.limits import DEFAULTS, Limits
from localhub.faults import Faults

Provider = Literal["aws", "cdse"]
"""The service's deployments."""
S3Url = Annotated[str, Field(pattern=r"^s3:/")]
"""A folder of a bucket."""


class Settings(BaseModel):
    """Settings of one localhub; the defaults serve the loopback interface only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Path
    """Folder of the jobs database, the credentials and the scratch files, for one localhub at a time; created."""
    archive: Annotated[S3Url | Path, Field(union_mode="left_to_right")]
    """Folder, or s3:// folder of a bucket, with STAC items (JSON) and the rasters that they name; a job sees the scenes
    of its start. A bucket is one of the store below and is read with its keys."""
    host: str = "127.0.0.1"
    """Address to listen on. Anything but a loopback address exposes plain HTTP to the network."""
    port: int = Field(default=8484, ge=0, le=65535)
    """Port to listen on; 0 takes any free one."""
    s3_endpoint_url: str | None = None
    """Endpoint of the object store for every bucket, for example http://127.0.0.1:8333; None means AWS."""
    s3_access_key: str = ""
    """Access key that stands in for an IAM role (requests with `iamRoleARN`); empty refuses such requests."""
    s3_secret_key: SecretStr = SecretStr("")
    """Secret key that goes with `s3_access_key`."""
    client_id: str = "localhub"
    """OAuth client that may use the service. Each client id is an account of its own."""
    client_secret: SecretStr = SecretStr("localhub")
    """Secret of that OAuth client."""
    other_clients: dict[str, SecretStr] = {}
    """More OAuth clients: secret by client id."""
    account_pu: float | None = Field(default=None, ge=0)
    """Processing units of an account when it is made, at the first start with its client; None never ends."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests that an account may make in a minute; more are answered with 429. None does not count."""
    provider: Provider = "aws"
    """Whose deployment to be: `aws` has CLM and CLP and takes IAM roles; `cdse`, the Copernicus Data Space Ecosystem,
    has neither and wants an access key."""
    token_seconds: int = Field(default=3600, ge=1)
    """Life of an access token. `sentinelhub` asks for a new one before every call when it is 120 or less."""
    workers: int = Field(default=2, ge=1)
    """Processes that evaluate features, and as many for the Process API from its first request on."""
    worker_memory_mb: int = Field(default=2048, ge=512)
    """Resident memory of such a process, MiB. A script that makes it larger is interrupted and its feature, analysis or
    request fails; when that does not help, the process ends at a quarter more. At least four times `block_mb`."""
    script_seconds: float = Field(default=DEFAULTS.call_seconds, gt=0)
    """Time of one call into a script: its top-level code, a function, or a chunk of pixels."""
    block_mb: int = Field(default=256, ge=1)
    """Input samples that a worker holds at a time, in MiB; a feature is evaluated in blocks of rows of that size."""
    feature_tries: int = Field(default=3, ge=1)
    """Failed tries after which a feature is FATAL."""
    restart_seconds: float = Field(default=1800, ge=0)
    """Time after a STOP before which START is refused (the service's 30 minutes)."""
    upload_seconds: float = Field(default=1, gt=0)
    """Least time between two uploads of a running job's execution database."""
    no_data_output: Literal["none", "zeros"] = "none"
    """What a feature without any scene delivers: nothing, or rasters of zeros and the script's userdata.json."""
    faults: Faults = Faults()
    """What goes wrong from the start; the admin endpoint changes it while it runs."""

    @field_validator("archive")
    @classmethod
    def _is_a_place(cls, value: str | Path) -> str | Path:
        if isinstance(value, str):
            parse_s3_url(value)
        return value

    @model_validator(mode="after")
    def _names_each_client_once(self) -> Self:
        if self.client_id in self.other_clients:
            raise ValueError(f"Client '{self.client_id}' is client_id and one of other_clients; give it one secret.")
        return self

    @model_validator(mode="after")
    def _holds_its_blocks(self) -> Self:
        if self.worker_memory_mb < 4 * self.block_mb:
            raise ValueError(
                f"worker_memory_mb {self.worker_memory_mb} does not hold block_mb {self.block_mb}, which takes up to "
                f"four times as much in all; choose {4 * self.block_mb} or more, or smaller blocks."
            )
        return self

    @property
    def limits(self) -> Limits:
        """What scripts may take."""
        return Limits(self.script_seconds, self.worker_memory_mb * 2**20)

    @property
    def scratch_dir(self) -> Path:
        """Folder for the workers' files; emptied at every start."""
        return self.data_dir / "scratch"

    @property
    def clients(self) -> dict[str, SecretStr]:
        """All OAuth clients: secret by client id."""
        return {self.client_id: self.client_secret, **self.other_clients}
