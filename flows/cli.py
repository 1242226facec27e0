"""The command line: ``eopatch-flow run | plan | check | preview | setup | serve | localhub | demo | schema``.

Prefect and the geospatial libraries are imported by the commands, after the settings that they read at import, and so
that ``--help`` answers at once.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from flows.exits import INTERRUPTED, exit_help, exit_status

if TYPE_CHECKING:
    from flows.conclusion import Summary
    from flows.parameters import LandCover
    from tasks.report import Plan

CLI_SETTINGS = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the progress shown here takes the place of the log
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # Prefect's own 20 s are short for a busy machine
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def _examples(*lines: str, more: str = "") -> str:
    """The end of a command's help: examples, each on a line of its own, and what else there is to know."""
    return "\n".join(["Examples:", *lines, *(["", more] if more else [])])


app = typer.Typer(
    help="From an area to labelled EOPatches, by Sentinel Hub's Batch Processing API.",
    epilog=_examples(
        "eopatch-flow demo                    everything here, without an account",
        "eopatch-flow localhub                the demo's servers, until Ctrl-C",
        "eopatch-flow plan docs/sample.yaml   tiles and price; nothing is bought",
        "eopatch-flow run docs/sample.yaml    the whole flow",
        more=exit_help(),
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[Path, typer.Argument(help="YAML or JSON file with the flow's parameters.", metavar="CONFIG")]


@app.command(
    epilog=_examples(
        "eopatch-flow run sample.yaml --dry-run    check all, tell the price",
        "eopatch-flow run sample.yaml              order, follow, convert, label",
        "eopatch-flow run sample.yaml > run.log    plain lines instead of bars",
        more=exit_help(),
    )
)
def run(
    config: Config,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check what a run checks, show its plan and end. Nothing is bought.")
    ] = False,
) -> None:
    """Run the flow: order, follow, convert, label.

    CONFIG has the flow's parameters; what is left out has its default, on the servers of 'eopatch-flow localhub'. One
    line is a start: area: {name: Fields, bbox: [15.90, 46.38, 15.95, 46.42]}

    A run that was interrupted goes on where it was when it is called again: nothing is bought twice.
    """
    from flows.parameters import read_config

    parameters = read_config(config)
    if dry_run:
        _show_plan(parameters, with_service=True)
        return
    from flows.land_cover import land_cover
    from flows.server import wake_prefect
    from flows.terminal import watched

    wake_prefect()
    with _interruptible(), watched():
        arguments = {name: getattr(parameters, name) for name in type(parameters).model_fields}
        summary = cast("Summary", land_cover(**arguments))  # Prefect unwraps the state
    _show(summary)


@app.command(
    epilog=_examples(
        "eopatch-flow plan sample.yaml",
        "eopatch-flow plan sample.yaml --json plan.json --geopackage tiles.gpkg",
        more=exit_help(),
    )
)
def plan(
    config: Config,
    as_json: Annotated[Path | None, typer.Option("--json", help="File to write the plan to, as JSON.")] = None,
    geopackage: Annotated[
        Path | None, typer.Option(help="File to write the tiles to, with samples and prices.")
    ] = None,
) -> None:
    """Show tiles, dates, acquisitions, price and what exists already. Nothing is created or bought."""
    from flows.parameters import read_config
    from tasks.report import plan_json, write_plan
    from tasks.storage import check_parent

    for option, file in (("--json", as_json), ("--geopackage", geopackage)):
        if file is not None:
            check_parent(file, option)
    found = _show_plan(read_config(config))
    if as_json is not None:
        as_json.write_text(plan_json(found), encoding="utf-8")
    if geopackage is not None:
        write_plan(found, geopackage)


@app.command(
    epilog=_examples(
        "eopatch-flow schema > config.schema.json",
        more="First line of a YAML file:\n  # yaml-language-server: $schema=config.schema.json",
    )
)
def schema() -> None:
    """Print the JSON schema of CONFIG, by which editors complete and check it.

    A YAML file names it in a comment, a JSON file in a key "$schema".
    """
    from flows.schema import schema_text

    typer.echo(schema_text(), nl=False)


@app.command(
    "check",
    epilog=_examples(
        "eopatch-flow check evalscripts",
        "eopatch-flow check ndvi.js --acquisitions 40 --end 2024-06-30",
        "eopatch-flow check radar.js --bands VV,VH --json",
    ),
)
def check_scripts(
    paths: Annotated[list[Path], typer.Argument(help="Evalscripts, or folders with some.", metavar="SCRIPT_OR_FOLDER")],
    acquisitions: Annotated[int, typer.Option(help="Made-up acquisitions in a year.", min=1, max=366)] = 12,
    end: Annotated[str | None, typer.Option(help="Day of the last one; today by default.", metavar="DAY")] = None,
    bands: Annotated[
        str | None,
        typer.Option(
            help="Bands of a collection of your own, instead of Sentinel-2's or fused with it.", metavar="NAME,NAME"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run evalscripts on a small made-up window: what each reads, makes and costs, or why it fails.

    Nothing is asked of Sentinel Hub. The status is 1 when a script fails, and 2 when there is nothing to check.
    """
    from flows import check
    from tasks.errors import InvalidInput

    results = []
    try:
        for checked in check.check_all(paths, check.trial_of(end, acquisitions, bands)):
            results.append(checked)
            if not as_json:
                typer.echo(check.told(checked))
    except InvalidInput as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(check.as_json(results) if as_json else check.summary(results))
    raise typer.Exit(any(checked.state == "fails" for checked in results))


@app.command(
    epilog=_examples(
        "eopatch-flow preview ndvi.js --bbox 15.70,46.335,16.02,46.475 --period 2019-06-01/2019-08-31",
        more=exit_help(),
    )
)
def preview(  # noqa: PLR0913, PLR0917 - each is an option that a person gives
    script: Annotated[Path, typer.Argument(help="File with an evalscript (V3).", metavar="SCRIPT")],
    bbox: Annotated[str, typer.Option(help="The whole area: W,S,E,N in degrees.", metavar="W,S,E,N")],
    period: Annotated[str, typer.Option(help="First and last day.", metavar="START/END")],
    at: Annotated[
        str | None, typer.Option(help="Middle of the window; the area's by default.", metavar="LON,LAT")
    ] = None,
    collection: Annotated[str | None, typer.Option(help="sentinel-2-l1c (default) or sentinel-2-l2a.")] = None,
    grid: Annotated[int | None, typer.Option(help="Tiling grid of the area: 0, 1 (default) or 2.")] = None,
    resolution: Annotated[float | None, typer.Option(help="Pixel size, metres; 10 by default.")] = None,
    size: Annotated[int | None, typer.Option(help="Columns and rows of the window at most; 512 by default.")] = None,
    mosaicking_order: Annotated[str | None, typer.Option(help="mostRecent (default), leastRecent, leastCC.")] = None,
    max_cloud_cover: Annotated[int | None, typer.Option(help="Percent; scenes with more are left out.")] = None,
    output: Annotated[str | None, typer.Option(help="Which output to show; 'default' or the first one.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Sentinel Hub's address; localhub's by default.")] = None,
    token_url: Annotated[str | None, typer.Option(help="Where tokens are given, if that is not known.")] = None,
    credentials_block: Annotated[
        str | None, typer.Option(help="Prefect block; SH_CLIENT_ID and SH_CLIENT_SECRET by default.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="File to write; preview-SCRIPT.png by default.")] = None,
) -> None:
    """Draw one small window by the Process API, and tell its price and that of the whole area.

    Only the window is bought, besides about 0.01 PU for each 100 acquisitions that the Catalog tells of.
    """
    from flows.preview import preview as buy_window
    from flows.preview import preview_text, read_wish

    service = {"base_url": base_url, "token_url": token_url, "credentials_block": credentials_block}
    wish = {
        "script": script, "bbox": bbox, "period": period, "at": at, "collection": collection, "grid": grid,
        "resolution": resolution, "size": size, "mosaicking_order": mosaicking_order,
        "max_cloud_cover": max_cloud_cover, "output": output, "png": png,
        "service": {name: value for name, value in service.items() if value is not None},
    }  # fmt: skip
    typer.echo(preview_text(buy_window(read_wish(wish))))


@app.command(
    epilog=_examples(
        "eopatch-flow setup docs/slovenia.yaml    asks on a terminal",
        "SH_CLIENT_ID=... SH_CLIENT_SECRET=... AWS_ACCESS_KEY_ID=... "
        "AWS_SECRET_ACCESS_KEY=... eopatch-flow setup docs/slovenia.yaml",
        more=exit_help(),
    )
)
def setup(
    config: Annotated[
        Path | None,
        typer.Argument(help="YAML or JSON file with the flow's parameters; localhub by default."),
    ] = None,
) -> None:
    """Try credentials on the service and the buckets of a configuration, and save them as blocks of Prefect.

    They come from the environment, or are asked for. Nothing is saved before all is well, and no secret is shown.
    """
    from flows.parameters import LandCover, read_config
    from flows.setup import set_up

    for line in set_up(read_config(config) if config else LandCover()):
        typer.echo(line)


@app.command(
    epilog=_examples(
        "eopatch-flow serve",
        "eopatch-flow serve monthly.yaml --cron '0 6 3 * *'",
        "eopatch-flow serve config.yaml --no-schedules",
    )
)
def serve(
    config: Annotated[
        Path | None,
        typer.Argument(help="YAML or JSON file with the flow's parameters; localhub's sample by default."),
    ] = None,
    cron: Annotated[
        str | None, typer.Option(help="When the flow runs by itself, UTC; never by default.", metavar="'0 6 3 * *'")
    ] = None,
    schedules: Annotated[
        bool, typer.Option(help="Whether anything runs by itself, the search for orphans too.")
    ] = True,
) -> None:
    """Serve the flows to Prefect's UI and schedules on this machine, without a work pool, until Ctrl-C."""
    from flows.parameters import LandCover, read_config
    from flows.serving import serve_flows

    serve_flows(read_config(config) if config else LandCover(), cron=cron, schedules=schedules)


@app.command(
    epilog=_examples(
        "eopatch-flow localhub",
        "eopatch-flow localhub --archive my-scenes --account-pu 500",
        "eopatch-flow localhub --faults faults.yaml --port 0 --s3-port 0",
    )
)
def localhub(  # noqa: PLR0913, PLR0917 - each is an option that a person gives
    folder: Annotated[Path, typer.Option(help="Keeps buckets, jobs and the sample archive.")] = Path("localhub-data"),
    archive: Annotated[
        Path | None, typer.Option(help="Folder with STAC items and rasters of your own, instead of the sample.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port of localhub; 0 takes a free one.")] = 8484,
    s3_port: Annotated[int, typer.Option(help="Port of the S3 server; 0 takes a free one.")] = 8333,
    s3_endpoint: Annotated[
        str | None,
        typer.Option(help="An S3 server that runs already, instead of one of its own.", metavar="URL"),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(
            help="Whose deployment to be: aws has cloud masks and IAM roles, cdse has neither.", metavar="NAME"
        ),
    ] = None,
    account_pu: Annotated[
        float | None, typer.Option(help="Processing units of a new account; endless by default.")
    ] = None,
    faults: Annotated[
        Path | None,
        typer.Option(
            help="YAML or JSON file of what goes wrong: api, tiles, database, tile_seconds; see localhub/README.md."
        ),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(help="YAML or JSON file of any other setting: workers, restart_seconds, token_seconds, ..."),
    ] = None,
) -> None:
    """Serve the stand-in for Sentinel Hub and an S3 server, until Ctrl-C.

    Both listen on this machine only. A page for people is at the address that is printed.
    """
    from flows.servers import read_settings, servers
    from flows.terminal import watched
    from localhub.server import ServerError
    from tasks.service import LOCALHUB_CLIENT
    from tasks.storage import LOCALHUB_S3_KEYS

    chosen = read_settings(settings, faults, provider=provider, account_pu=account_pu)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with (
        watched() as console,
        servers(folder, archive, port=port, s3_port=s3_port, s3_endpoint=s3_endpoint, chosen=chosen) as local,
    ):
        keys = "of the environment" if s3_endpoint else ", ".join(LOCALHUB_S3_KEYS)
        lines = (
            f"Sentinel Hub stand-in  {local.base_url}  client id and secret: {', '.join(LOCALHUB_CLIENT)}",
            f"S3                     {local.endpoint_url}  access key and secret: {keys}",
            f"Page                   {local.base_url}/  (sign in with client id and secret)",
            "The flow's default parameters use both. Ctrl-C stops them; their data stays.",
        )
        console.print("\n".join(lines), highlight=False, soft_wrap=True)
        while not stop.wait(1):
            if not local.alive():
                raise ServerError(f"A server ended by itself; its log lies in {folder}.")


@app.command(
    epilog=_examples(
        "eopatch-flow demo", "eopatch-flow demo --folder /tmp/demo    again: nothing is bought or made twice"
    )
)
def demo(
    folder: Annotated[Path, typer.Option(help="Keeps results, buckets, jobs and the sample archive.")] = Path("demo"),
) -> None:
    """Run everything on this machine, without an account: servers, sample scenes, the whole flow."""
    from flows.demo import demo as run_demo
    from flows.terminal import watched

    with _interruptible(), watched():
        summary = run_demo(folder)
    _show(summary)


def main() -> None:
    """Run the command line; an error of ours, of files or of the network ends it with its message and its status."""
    os.environ.update({name: value for name, value in CLI_SETTINGS.items() if name not in os.environ})
    try:
        app()
    except Exception as error:
        if not isinstance(error, _told_errors()):
            raise
        _tell(error)
        sys.exit(exit_status(error))


def _told_errors() -> tuple[type[Exception], ...]:
    """What a person is told of in a sentence; these imports wait until there is an error."""
    from botocore.exceptions import BotoCoreError

    from localhub.sample import SampleError
    from localhub.seaweed import ObjectStoreError
    from localhub.server import ServerError
    from tasks.errors import EopatchFlowError

    return EopatchFlowError, ObjectStoreError, ServerError, SampleError, OSError, BotoCoreError


def _tell(error: Exception) -> None:
    from botocore.exceptions import BotoCoreError

    text = f"eopatch-flow: {error}"
    if isinstance(error, OSError | BotoCoreError):
        text = f"eopatch-flow: {str(error) or repr(error)}\n"
        text += "A file or the network failed. Run again: what is done is not repeated."
    typer.echo(text, err=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does, and tell what the run has noted on its way out."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        typer.echo("\n".join(["eopatch-flow: interrupted.", *_notes(interrupt)]), err=True)
        raise typer.Exit(INTERRUPTED.status) from interrupt


def _notes(error: BaseException | None) -> Iterator[str]:
    """Notes of an exception and of those that it came from: Prefect raises its own for SIGTERM, and sends it again."""
    while error is not None:
        yield from getattr(error, "__notes__", ())
        error = error.__context__


def _show_plan(parameters: "LandCover", *, with_service: bool = False) -> "Plan":
    """Print what a run would do.

    Raises:
        BudgetExceeded: it would be refused, after the plan has been shown.
        InvalidInput: there is nothing to buy, or to label with; also after that.
    """
    from rich.console import Console
    from rich.markdown import Markdown

    from flows.approval import earlier_approvals
    from flows.order import local_reference, prepare, survey_order
    from flows.planning import check_scenes, make_plan
    from tasks.batch import check_budget
    from tasks.report import plan_markdown

    order = prepare(parameters, with_service=with_service)
    records = survey_order(order)
    found = make_plan(order, records)
    Console().print(Markdown(plan_markdown(found)))
    if with_service:
        price, limits = found.price_pu.high, parameters.limits
        check_scenes(found)
        with local_reference(order, records):
            pass
        if found.left_pu.high:
            check_budget(price, len(found.tiles), limits)
            if limits.ask_above_pu is not None and price > limits.ask_above_pu:
                asked = f"{price:,.2f} PU is above limits.ask_above_pu of {limits.ask_above_pu:,.10g}."
                approved = [one for one in earlier_approvals(order.folder, parameters.storage) if one.cap_pu >= price]
                if approved:
                    typer.echo(
                        f"{asked} Request {approved[-1].request_id} has been approved up to {approved[-1].cap_pu:,.2f} "
                        "PU; for another one a person is asked again."
                    )
                else:
                    typer.echo(
                        f"A person has to approve it: {asked} Where nobody can be asked, a run ends without buying."
                    )
    return found


def _show(summary: "Summary") -> None:
    typer.echo(f"\n{summary.message}")
    for name, place in summary.places.items():
        typer.echo(f"  {name + ':':<17} {place}")
