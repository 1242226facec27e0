"""What a script's failure looks like to its author: the service's wording, with the line in the author's own file."""

import re
from typing import Final

SCRIPT_NAME: Final = "evalscript.js"
"""The name under which V8 knows the user's source: it stands in messages and stack traces."""
ENGINE_NAME: Final = "localhub-engine.js"
"""The name of our own JavaScript, whose frames no user should see."""

NAMING: Final = "//# sourceURL="
"""How a source tells V8 its name, in its last line."""

_MOST_CHARACTERS: Final = 4000
"""Of a message: a script may throw what it likes, and its source may be one long line."""
_MOST_IN_LINE: Final = 500


class EvalscriptError(Exception):
    """The evalscript is wrong: it does not parse, declares something unknown, or failed while it ran.

    The text is the one the service gives: ``Failed to evaluate script!``, then ``evalscript.js:LINE: TypeError: …``,
    the line itself and the stack; ``Invalid script! …`` or ``Collection … has no band …`` where ``setup`` declares
    what does not exist.
    """


def failed(javascript_message: str) -> EvalscriptError:
    """Word a JavaScript exception as the service does.

    Args:
        javascript_message: V8's text, ``name:line: Error: …`` followed by the source line and the stack.
    """
    start = javascript_message[: 100 * _MOST_CHARACTERS].rstrip().replace("<anonymous>", SCRIPT_NAME)
    lines = [_shortened(line, _MOST_IN_LINE) for line in start.splitlines()]
    head, *rest = lines or [""]
    if head.startswith(ENGINE_NAME):  # an objection of the engine itself: its place in the engine helps nobody
        return EvalscriptError(f"Failed to evaluate script!\n{head.split('Error: ', 1)[-1]}")
    kept = [line for line in rest if ENGINE_NAME not in line and NAMING not in line]
    return EvalscriptError(
        _shortened("\n".join(["Failed to evaluate script!", head, *kept]).rstrip(), _MOST_CHARACTERS)
    )


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def stopped(excess: str, hook: str = "", source: str = "") -> EvalscriptError:
    """Word that a script was stopped at a limit. V8 does not tell in which line; the function's own helps too.

    Args:
        excess: what it did, for example what ``ran_longer_than`` says.
        hook: the function that ran, if that is known.
        source: the script.
    """
    found = re.search(rf"\bfunction\s+{hook}\b|\b{hook}\s*=", source) if hook else None
    line = f":{source.count(chr(10), 0, found.start()) + 1}" if found else ""
    place = f" in {hook}" if hook else ""
    return EvalscriptError(f"Failed to evaluate script!\n{SCRIPT_NAME}{line}: {excess}{place}.")


def ran_longer_than(seconds: float) -> str:
    """Word the limit of time."""
    return f"it ran longer than {seconds:g} s"


def used_more_than(limit_bytes: int) -> str:
    """Word the limit of memory."""
    return f"it used more than {limit_bytes / 2**30:.3g} GB of memory"


def invalid(reason: str) -> EvalscriptError:
    """Word an objection to what the script declares."""
    return objection(f"Invalid script! {reason}")


def objection(text: str) -> EvalscriptError:
    """Word one that the service gives as it is."""
    return EvalscriptError(_shortened(text, _MOST_CHARACTERS))
