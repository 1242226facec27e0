"""Where tiles are worked on: in threads of the flow, in processes beside it, or on a Dask cluster.

A worker may die in the middle of a tile, of a lack of memory for example. Dask gives the tile to another worker by
itself, and gives up after four deaths (``distributed.scheduler.allowed-failures``). A process pool is broken as a whole
by the death of one process: a new one takes its place, and each tile that was under way is repeated alone, so that one
which kills its process is known.

The workers of a cluster get no secrets but what Prefect itself sends with each task run, the key of its own API: keys
for S3 come from a block, by name, or from the environment of each worker.
"""

from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from httpx import HTTPError
from prefect import Task
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, hydrated_context, serialize_context
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner

from flows.parameters import Run
from flows.quiet import quieten
from tasks.errors import InvalidInput, TileError, Unavailable
from tasks.storage import Storage, check_writable, open_filesystem

if TYPE_CHECKING:
    from distributed import Client

CONNECT_SECONDS = 10
"""How long a scheduler may take to answer."""
PROBE_SECONDS = 180
"""How long a cluster may take to run a first task: a worker imports this project for it, and one that grows on demand
starts a worker before."""
PROBED_WORKERS = 50
"""How many workers are tried out, at most."""


class _Lost:
    """The process that worked on tiles has died; what became of them is not known."""


LOST = _Lost()


class Workers:
    """Takes task runs for tiles; a context within the flow's run. Nothing is started before the first one.

    Args:
        run: where, and how many at once.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._open = ExitStack()
        self._runner: TaskRunner[Any] | None = None
        self.broken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def submit(self, task: Task[..., Any], **parameters: Any) -> PrefectFuture[Any]:
        """Start a task run."""
        if self._runner is None:
            self._runner = self._started()
        future: PrefectFuture[Any] = self._runner.submit(task, parameters)
        return future

    def outcome(self, future: PrefectFuture[Any]) -> object:
        """What a task run gave, or the error that ended it; LOST when its process died and it may be started again.

        Raises:
            Unavailable: the cluster is gone.
        """
        try:
            return future.result(raise_on_failure=False)
        except BrokenExecutor:
            self.broken = True
            return LOST
        except Exception as error:  # the task's own errors are given, not raised: this is the cluster's
            if _killed_its_workers(error):
                return TileError(f"The workers that worked on it died, probably for want of memory: {error}")
            raise Unavailable(
                f"The Dask cluster at {self._run.dask_address} was lost: {error!r}. The request goes on; run again "
                "when the cluster is there."
            ) from error

    def renew(self) -> None:
        """Put new processes in the place of broken ones, when none is at work any more."""
        if self.broken:
            self._open.close()
            self._runner, self.broken = None, False

    def _started(self) -> TaskRunner[Any]:
        if self._run.tiles_on == "threads":
            context = FlowRunContext.get()
            assert context is not None  # noqa: S101 - tiles are worked on within a flow's run only
            return context.task_runner
        self._open.enter_context(_told_prefect())
        return self._open.enter_context(_runner(self._run))


def _killed_its_workers(error: Exception) -> bool:
    from distributed import KilledWorker  # noqa: PLC0415 - an extra

    return isinstance(error, KilledWorker)


@contextmanager
def _runner(run: Run) -> Iterator[TaskRunner[Any]]:
    if run.tiles_on == "processes":
        with ProcessPoolTaskRunner(max_workers=run.tiles_at_once, initializer=quieten) as processes:
            yield processes
        return
    from distributed import WorkerPlugin  # noqa: PLC0415 - an extra
    from prefect_dask import DaskTaskRunner  # noqa: PLC0415

    class Quiet(WorkerPlugin):  # type: ignore[misc]  # without type information
        """Workers that come later are quietened, too."""

        name = "eopatch-flow-quiet"

        def setup(self, worker: object) -> None:  # noqa: ARG002 - Dask's signature
            quieten()

    with DaskTaskRunner(address=run.dask_address, client_kwargs={"timeout": CONNECT_SECONDS}) as cluster:
        cluster.client.register_plugin(Quiet())
        yield cluster


@contextmanager
def _told_prefect() -> Iterator[None]:
    """Within the block the settings, which go to other processes, name the server of this run, temporary or not."""
    with get_client(sync_client=True) as client:
        url = str(client.api_url).rstrip("/")
    with temporary_settings({PREFECT_API_URL: url}):
        yield


# ---- before anything is paid for ----


def check_workers(run: Run, storage: Storage) -> None:
    """Check that a cluster, if one is asked for, is there and that its workers can do what they will have to.

    Each worker has to have this project, to read and write where tiles and EOPatches lie, and to reach Prefect's
    server.

    Raises:
        InvalidInput: what is missing, and where.
    """
    if run.tiles_on != "dask":
        return
    if find_spec("prefect_dask") is None:
        raise InvalidInput(
            "run.tiles_on is dask, but the package prefect-dask is not installed; pip install 'eopatch-flow[dask]'."
        )
    from distributed import Client  # noqa: PLC0415 - an extra

    try:
        client = Client(run.dask_address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise InvalidInput(
            f"The Dask scheduler {run.dask_address} does not answer: {error}. Start it with 'dask scheduler' and its "
            "workers with 'dask worker ADDRESS', or correct run.dask_address."
        ) from error
    with client, client.as_current(), _told_prefect() if FlowRunContext.get() else nullcontext():
        _check_probes(run, _probed(client, storage))


def _probed(client: "Client", storage: Storage) -> dict[str, str]:
    """What each worker that answered in time says is wrong, by its address; empty for nothing."""
    from distributed import wait  # noqa: PLC0415 - an extra

    addresses = list(client.scheduler_info()["workers"])[:PROBED_WORKERS]
    settings = serialize_context()["settings_context"] if FlowRunContext.get() else None
    with _seen_from_here(storage) as mark:
        probes: list[Any] = [
            client.submit(
                _probe, storage, mark, settings, workers=[address] if address else None, pure=False, priority=10
            )
            for address in addresses or [""]
        ]
        with suppress(TimeoutError):  # the busy ones are not waited for
            wait(probes, timeout=PROBE_SECONDS)
        return {
            address or "A worker": probe.result() if probe.status == "finished" else _unable(probe)
            for address, probe in zip(addresses or [""], probes, strict=True)
            if probe.done()
        }


def _unable(probe: Any) -> str:
    return f"cannot run eopatch-flow ({probe.exception()!r}); install the same version there, with the extra dask."


def _check_probes(run: Run, told: dict[str, str]) -> None:
    if not told:
        raise InvalidInput(
            f"No worker of the Dask cluster {run.dask_address} took a task within {PROBE_SECONDS} s; start workers "
            f"with 'dask worker {run.dask_address}', or wait until they are free."
        )
    wrong = {address: problem for address, problem in told.items() if problem}
    if wrong:
        address, problem = next(iter(wrong.items()))
        raise InvalidInput(f"{len(wrong)} of {len(told)} Dask workers cannot work on tiles. {address} {problem}")


@contextmanager
def _seen_from_here(storage: Storage) -> Iterator[str]:
    """A file beside a local destination, which every worker has to see; empty where that is on S3."""
    if storage.destination.startswith("s3://"):
        yield ""
        return
    path = Path(open_filesystem(storage.destination, storage)[1])
    existing = next(parent for parent in (path, *path.parents) if parent.is_dir())
    with NamedTemporaryFile(dir=existing, prefix=".eopatch-flow-seen-") as mark:
        yield mark.name


def _probe(storage: Storage, mark: str, settings: dict[str, Any] | None) -> str:
    """Run by a worker: what is wrong with it, as the rest of a sentence that begins with its address.

    Args:
        storage: where tiles and EOPatches lie.
        mark: a file that it has to see.
        settings: Prefect's, of the run; None outside of a run, where its server is not tried.
    """
    if mark and not Path(mark).exists():
        return (
            f"does not see {Path(mark).parent}: storage.destination has to be a folder that all machines share, or an "
            "S3 prefix."
        )
    with hydrated_context({"settings_context": settings} if settings else None):
        try:
            if settings:
                with get_client(sync_client=True) as client:
                    client.hello()
        except (HTTPError, RuntimeError) as error:
            return (
                f"does not reach Prefect's server at {PREFECT_API_URL.value()} ({error!r}); start one with 'prefect "
                "server start --host 0.0.0.0' and set PREFECT_API_URL to an address that workers reach."
            )
        try:
            for url, what in ((storage.tiles_url, "the delivery"), (storage.destination, "the destination")):
                check_writable(url, storage, what)
        except InvalidInput as error:
            return f"says: {error}"
    return ""
