"""Filters of the Catalog API: the part of CQL2 that the service takes, in both of its encodings.

Comparisons, `between`, `not` and `and`; there is no `or`, and no property but those of `QUERYABLES`. Sources: the
service's OpenAPI description, schemas Cql2BooleanExpression and CatalogCollectionQueryables, and the Filter extension
in its documentation; grammar of the text encoding: OGC 21-065, Common Query Language (CQL2).
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

QUERYABLES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"eo:cloud_cover": {"description": "Cloud Cover", "type": "number", "minimum": 0, "maximum": 100}}
)
"""Schema of each property that a filter may name; all are numbers."""

Condition = Callable[[Mapping[str, float]], bool]
"""Tells whether an item with these values of the queryables passes."""

_Number = Callable[[Mapping[str, float]], float]
_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = MappingProxyType(
    {
        "=": operator.eq,
        "<>": operator.ne,
        "<": operator.lt,
        "<=": operator.le,
        ">": operator.gt,
        ">=": operator.ge,
    }
)
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)
      | (?P<operator><=|>=|<>|[=<>()])
      | (?P<string>'(?:[^']|'')*')
      | (?P<name>"[^"]+"|[A-Za-z_][\w.:-]*)
    )""",
    re.VERBOSE,
)
_DEPTH = 50


class FilterError(ValueError):
    """The filter is not CQL2, or beyond what the service takes; the text says where."""


def condition_of(expression: Any, depth: int = 0) -> Condition:
    """Return the condition that a filter in the JSON encoding stands for.

    Raises:
        FilterError: an operator, a property or an operand that is not offered.
    """
    if not isinstance(expression, dict) or not isinstance(expression.get("args"), list) or depth > _DEPTH:
        raise FilterError(f"{str(expression)[:80]!r} is not a condition; give an object with 'op' and 'args'")
    name, arguments = expression.get("op"), expression["args"]
    match name, arguments:
        case "and", [_, *_]:  # one is too few by the description, and what the vendor's client sends
            parts = [condition_of(part, depth + 1) for part in arguments]
            return lambda item: all(part(item) for part in parts)
        case "not", [part]:
            negated = condition_of(part, depth + 1)
            return lambda item: not negated(item)
        case "between", [_, _, _]:
            value, least, most = (_number(argument) for argument in arguments)
            return lambda item: least(item) <= value(item) <= most(item)
        case str(), [_, _] if name in _COMPARISONS:
            compare = _COMPARISONS[name]
            left, right = (_number(argument) for argument in arguments)
            return lambda item: compare(left(item), right(item))
    offered = ", ".join((*_COMPARISONS, "between", "not", "and"))
    raise FilterError(f"operator {name!r} with {len(arguments)} operands is not supported; choose one of: {offered}")


def _number(operand: Any) -> _Number:
    match operand:
        case bool():
            pass
        case int() | float():
            return lambda _: operand
        case {"property": str(name)} if name in QUERYABLES:
            return lambda item: item[name]
        case {"property": name}:
            raise FilterError(
                f"querying is not supported for property {name!r}; choose one of: {', '.join(QUERYABLES)}"
            )
    raise FilterError(f"operand {operand!r} is not a number, as {', '.join(QUERYABLES)} is")


def parse_text(text: str) -> dict[str, Any]:
    """Return the JSON encoding of a filter in the text encoding.

    Raises:
        FilterError: it does not follow the grammar.
    """
    parser = _Parser(list(_tokens(text)), text)
    expression = parser.conjunction(0)
    if not parser.take("end"):
        raise parser.unexpected()
    return expression


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    """number, operator, string, name, word (a keyword), or end."""
    text: str


_KEYWORDS = frozenset({"AND", "OR", "NOT", "BETWEEN", "LIKE", "IN", "IS", "NULL", "TRUE", "FALSE"})


def _tokens(text: str) -> Iterator[_Token]:
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise FilterError(f"'{text}' cannot be read from '{text[position:].strip()[:20]}' on")
        position = match.end()
        word = match[match.lastgroup]
        if match.lastgroup == "name" and word.upper() in _KEYWORDS:
            yield _Token("word", word.upper())
        else:
            yield _Token(match.lastgroup, word)
    yield _Token("end", "")


class _Parser:
    """Recursive descent over the tokens of one filter."""

    def __init__(self, tokens: list[_Token], text: str) -> None:
        self._tokens = tokens
        self._text = text
        self._at = 0

    def conjunction(self, depth: int) -> dict[str, Any]:
        """Read conditions that `AND` joins."""
        parts = [self._condition(depth)]
        while self.take("word", "AND"):
            parts.append(self._condition(depth))
        return parts[0] if len(parts) == 1 else {"op": "and", "args": parts}

    def take(self, kind: str, *texts: str) -> _Token | None:
        """Return the next token and pass it when it is one of these, else None."""
        token = self._tokens[self._at]
        if token.kind != kind or (texts and token.text not in texts):
            return None
        self._at += 1
        return token

    def unexpected(self) -> FilterError:
        """Return the objection to the next token."""
        token = self._tokens[self._at]
        if token.text == "OR":
            return FilterError("OR is not supported; conditions can only be joined by AND")
        return FilterError(f"'{self._text}' has {token.text or 'its end'!r} where something else is due")

    def _condition(self, depth: int) -> dict[str, Any]:
        if depth > _DEPTH:
            raise FilterError(f"the filter is nested deeper than {_DEPTH}")
        if self.take("word", "NOT"):
            return {"op": "not", "args": [self._condition(depth + 1)]}
        if self.take("operator", "("):
            inner = self.conjunction(depth + 1)
            self._due("operator", ")")
            return inner
        return self._comparison(self._operand())

    def _comparison(self, left: Any) -> dict[str, Any]:
        negated = self.take("word", "NOT")
        if self.take("word", "BETWEEN"):
            least = self._operand()
            self._due("word", "AND")
            between = {"op": "between", "args": [left, least, self._operand()]}
            return {"op": "not", "args": [between]} if negated else between
        sign = None if negated else self.take("operator", *_COMPARISONS)
        if sign is None:
            raise self.unexpected()
        return {"op": sign.text, "args": [left, self._operand()]}

    def _operand(self) -> Any:
        if token := self.take("number"):
            return float(token.text)
        if token := self.take("string"):
            return token.text[1:-1].replace("''", "'")
        if token := self.take("name"):
            return {"property": token.text.strip('"')}
        raise self.unexpected()

    def _due(self, kind: str, text: str) -> None:
        if not self.take(kind, text):
            raise self.unexpected()
