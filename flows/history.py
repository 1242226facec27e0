"""The ledger's rows: what this run did, what earlier ones did, and what EOPatches tell where it is lost."""

from collections.abc import Collection, Iterable
from dataclasses import replace

from flows.order import Order, earlier_records
from tasks.conversion import MARKER
from tasks.eopatches import check_marker
from tasks.ledger import TileRecord, TileState
from tasks.storage import open_filesystem


def with_history(order: Order, records: Iterable[TileRecord], touched: Collection[str]) -> list[TileRecord]:
    """Give the records of a run by name of their tile, those that it did not touch as earlier runs left them.

    Args:
        order: what was asked for.
        records: as the run knows them, one a tile.
        touched: names of the tiles that it converted or labelled.
    """
    earlier = earlier_records(order)

    def known(record: TileRecord) -> TileRecord:
        name = record.tile.name
        if name in touched:
            return record
        if name in earlier and earlier[name].state is record.state:
            return earlier[name]
        return rebuilt(order, record)

    ordered = sorted(records, key=lambda record: record.tile.name)
    return [replace(known(record), fingerprint=order.fingerprint) for record in ordered]


def rebuilt(order: Order, record: TileRecord) -> TileRecord:
    """Fill a record in from its EOPatch: sizes by the marker and the files, the bill by the samples that it tells.

    How long it took and what had been estimated is lost with the ledger. An EOPatch needed one attempt at least.
    """
    if record.state not in {TileState.CONVERTED, TileState.LABELLED}:
        return record
    files, folder = open_filesystem(order.patch_url(record.tile), order.parameters.storage)
    marker = check_marker(files, folder, MARKER, {}).marker
    return replace(
        order.billed(record, marker.get("samples")),
        attempts=max(record.attempts, 1),
        bytes_read=sum(source["size"] for source in marker.get("sources", {}).values()),
        bytes_written=files.du(folder),
    )
