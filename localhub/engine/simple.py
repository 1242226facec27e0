"""The simple form of evalscripts: no functions, the file is what happens to one pixel, and bands are plain names.

Sentinel Hub documents it only by example; most published scripts have it. Inputs are the bands that the text names, in
their default units; mosaicking is SIMPLE; the one output has the sample type AUTO and as many bands as the script
returns for a pixel with data.
"""

import re
from collections.abc import Collection
from typing import Final

from localhub.engine.bands import SENTINEL_2_BANDS

_NOT_CODE: Final = re.compile(r"//[^\n]*|/\*.*?\*/|(?P<text>\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*')", re.DOTALL)
_READS_TEXTS_AS_CODE: Final = re.compile(r"\b(?:eval|Function)\s*\(")
_FUNCTIONS: Final = re.compile(r"\b(?:setup|evaluatePixel)\b")
_RETURN: Final = re.compile(r"\breturn\b")
_NAMES: Final = re.compile(r"(?<![\w$.])[A-Za-z_$][\w$]*")


def is_simple(source: str) -> bool:
    """Tell whether a script defines neither `setup` nor `evaluatePixel`, and returns something."""
    code = _NOT_CODE.sub(" ", source)
    return not _FUNCTIONS.search(code) and _RETURN.search(code) is not None


def bands_named(source: str, known: Collection[str] = SENTINEL_2_BANDS) -> tuple[str, ...]:
    """Return the bands that a script in the simple form reads, in the order in which it first names them.

    Texts count where the script evaluates texts: some choose among formulas.
    """
    code = _NOT_CODE.sub(" ", source)
    if _READS_TEXTS_AS_CODE.search(code):
        code = _NOT_CODE.sub(lambda match: match["text"] or " ", source)
    names = _NAMES.findall(code)
    return tuple(dict.fromkeys(name for name in names if name in known))


def as_function(source: str, bands: Collection[str]) -> str:
    """Return the script as a function of a pixel; its lines keep their numbers.

    The script may declare a band's name anew: with `var`, as ours are, or with `let`, for it stands in an inner block.
    """
    return f"function evaluatePixel(sample) {{ var {{ {', '.join(bands)} }} = sample; {{ {source}\n}} }}"
