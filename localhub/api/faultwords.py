"""The faults that hold now, in words: whoever looks at a localhub that misbehaves should see that it was told to."""

from collections.abc import Iterator

from localhub.faults import ApiFault, DatabaseFault, Faults, TileFault

_PLACES = {"request": "in a folder of the request's id", "bucket": "at the top of the bucket"}


def told(faults: Faults) -> list[str]:
    """Return a sentence for each fault; none when localhub does as it should."""
    return [
        *map(_api, faults.api),
        *map(_tile, faults.tiles),
        *_database(faults.database),
        *_of_jobs(faults),
    ]


def _api(fault: ApiFault) -> str:
    who = "Requests of any kind but 'token'" if fault.operation == "any" else f"Requests '{fault.operation}'"
    return f"{who} {' and '.join(_answers(fault))}: {_which(fault)}."


def _answers(fault: ApiFault) -> Iterator[str]:
    if fault.seconds:
        yield f"wait {fault.seconds:g} s for the answer"
    if fault.status is not None:
        done = "although they are carried out" if fault.executed else "and not carried out"
        later = f" (Retry-After {fault.retry_after_ms} ms)" if fault.retry_after_ms is not None else ""
        yield f"are answered with {fault.status}{later} {done}"
    elif not fault.seconds:
        yield "are counted and answered as they should be"


def _which(fault: ApiFault) -> str:
    count = "all of them" if fault.times is None else f"{'one' if fault.times == 1 else fault.times} of them"
    return f"{count}, after {fault.skip} that pass" if fault.skip else count


def _tile(fault: TileFault) -> str:
    tiles = "All tiles" if fault.tile == "*" else f"Tiles '{fault.tile}'"
    outputs = "their files" if fault.output == "*" else f"the files of output '{fault.output}'"
    match fault.kind:
        case "fatal":
            return f"{tiles} fail{'' if fault.times is None else f', {fault.times} tries each'}."
        case "no_data":
            return f"{tiles} are processed as if there were no scene."
        case "undelivered":
            late = "are never delivered" if fault.seconds is None else f"follow {fault.seconds:g} s later"
            return f"{tiles} are DONE without their files, which {late}."
        case "truncated":
            return f"{tiles} are delivered with half of {outputs}."
        case "missing":
            return f"{tiles} are delivered without {outputs}."


def _database(fault: DatabaseFault) -> Iterator[str]:
    if fault.place in _PLACES:
        yield f"The execution database lies {_PLACES[fault.place]}."
    if fault.torn_uploads:
        yield f"The first {fault.torn_uploads} uploads of an execution database hold half of the file."
    if fault.stale_seconds:
        yield f"The execution database in the bucket is {fault.stale_seconds:g} s old."


def _of_jobs(faults: Faults) -> Iterator[str]:
    for seconds, where in (
        (faults.hidden_from_get_seconds, "cannot be got"),
        (faults.hidden_from_list_seconds, "is absent from the list"),
    ):
        if seconds:
            yield f"A new request {where} for {seconds:g} s."
    if faults.tile_seconds:
        yield f"Tiles end one by one, at least {faults.tile_seconds:g} s apart."
    for tiles, reason in ((faults.out_of_pu_after_tiles, "OUT_OF_PU"), (faults.unhealthy_after_tiles, "UNHEALTHY")):
        if tiles is not None:
            yield f"A job is STOPPED with {reason} after {tiles} tiles."
