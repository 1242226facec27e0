"""What a script's failure looks like to its author: the service's wording, with the line in the author's own file."""

from typing import Final

SCRIPT_NAME: Final = "evalscript.js"
"""The name under which V8 knows the user's source: it stands in messages and stack traces."""
ENGINE_NAME: Final = "localhub-engine.js"
"""The name of our own JavaScript, whose frames no user should see."""

NAMING: Final = "//# sourceURL="
"""How a source tells V8 its name, in its last line."""


class EvalscriptError(Exception):
    """The evalscript is wrong: it does not parse, declares something unknown, or failed while it ran.

    The text is the one the service gives: ``Failed to evaluate script!``, then ``evalscript.js:LINE: TypeError: …``,
    the line itself and the stack; ``Invalid script! …`` where ``setup`` declares what does not exist.
    """


def failed(javascript_message: str) -> EvalscriptError:
    """Word a JavaScript exception as the service does.

    Args:
        javascript_message: V8's text, ``name:line: Error: …`` followed by the source line and the stack.
    """
    lines = javascript_message.rstrip().replace("<anonymous>", SCRIPT_NAME).splitlines()
    head, *rest = lines or [""]
    if head.startswith(ENGINE_NAME):  # an objection of the engine itself: its place in the engine helps nobody
        return EvalscriptError(f"Failed to evaluate script!\n{head.split('Error: ', 1)[-1]}")
    kept = [line for line in rest if ENGINE_NAME not in line and NAMING not in line]
    return EvalscriptError("\n".join(["Failed to evaluate script!", head, *kept]).rstrip())


def invalid(reason: str) -> EvalscriptError:
    """Word an objection to what the script declares."""
    return EvalscriptError(f"Invalid script! {reason}")
