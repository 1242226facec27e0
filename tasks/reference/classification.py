"""Values of the class column become class ids, or are refused by name: never zeros in silence."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.errors import InvalidInput

NULL, UNMAPPED = -1, -2
"""Class ids of rows whose class is null, and of those whose value is in no class."""
PREFIX = "*"
"""What a code ends with that stands for all values that begin like it."""
SHOWN_VALUES = 10
"""How many wrong values a message names."""


class Classifier:
    """Gives class ids to values, and remembers those that have none.

    Args:
        codes: class id by code, which is a value as text, or the beginning of values and :data:`PREFIX`; None where the
            values are the ids.

    Attributes:
        unmapped: number of rows by value, for values that are in no class.
    """

    def __init__(self, codes: Mapping[str, int] | None) -> None:
        self._codes = codes
        prefixes = [code.removesuffix(PREFIX) for code in codes or () if code.endswith(PREFIX)]
        self._prefixes = sorted(prefixes, key=len, reverse=True)
        self._text = False
        self.unmapped: Counter[str] = Counter()

    def ids(self, values: pa.Array) -> NDArray[np.int16]:
        """Class id of each value, 0 to 255, or :data:`NULL` or :data:`UNMAPPED`."""
        encoded = values.dictionary_encode()
        kind = encoded.type.value_type
        self._text = self._text or pa.types.is_string(kind) or pa.types.is_large_string(kind)
        distinct = encoded.dictionary.to_pylist()  # of categories also those that no row has
        ids = np.array([*(self._id(value) for value in distinct), NULL], np.int16)
        indices = encoded.indices.fill_null(len(distinct)).to_numpy(zero_copy_only=False)
        counts = np.bincount(indices, minlength=len(ids)).tolist()
        for value, number, count in zip(distinct, ids.tolist(), counts, strict=False):
            if number == UNMAPPED and count:
                self.unmapped[as_text(value)] += count
        return np.asarray(ids[indices])

    def refuse_unmapped(self, place: str) -> None:
        """Refuse the values that were in no class.

        Args:
            place: file and column, for the message.

        Raises:
            InvalidInput: there were some.
        """
        if not self.unmapped:
            return
        shown = self._shown(sorted(self.unmapped)[:SHOWN_VALUES]) + (", …" if len(self.unmapped) > SHOWN_VALUES else "")
        text = "; the column is text" if self._text else ""
        problem = (
            f"no class ids, which are integers from 0 to 255{text}; give a class_table from values to ids"
            if self._codes is None
            else f"not in the class table ({self._shown(self._codes)}); add them, or set reference.unmapped: leave out"
        )
        raise InvalidInput(f"{place}: {self.unmapped.total()} rows have values that are {problem}. Values: {shown}.")

    def _shown(self, values: Iterable[str]) -> str:
        """Values as a message has them: text in quotes, so that blanks are seen."""
        return ", ".join(map(_quoted, values) if self._text else values)

    def _id(self, value: Any) -> int:
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return NULL
        if self._codes is None:
            is_id = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) and value in range(256)
            return int(value) if is_id else UNMAPPED
        text = as_text(value)
        if isinstance(value, bool) and text not in self._codes:
            text = text.lower()  # as SQL and JSON write it
        if text in self._codes:
            return self._codes[text]
        prefix = next((prefix for prefix in self._prefixes if text.startswith(prefix)), None)
        return UNMAPPED if prefix is None else self._codes[prefix + PREFIX]


def as_text(value: object) -> str:
    """A value as codes are written: 1300, 1300.0 and "1300" are the same, and 2.50 as a decimal is 2.5."""
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _quoted(text: str) -> str:
    """Text in quotes; by its escapes what is not printable, or what looks as other text does."""
    return repr(text) if unicodedata.is_normalized("NFC", text) else ascii(text)
