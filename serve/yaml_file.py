"""Read a YAML file, and remember where in it each value is."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from engine.errors import InputError, one_line, shortened

MAX_BYTES = 16_000_000
MAX_NODES = 300_000  # with those that aliases repeat
MAX_DEPTH = 20
MAX_DIGITS = 100

Keys = tuple[str | int, ...]  # from the root to a value: ("models", "anna", "num_frames")

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"


class Place(NamedTuple):
    """Line and column, both from 1."""

    line: int
    column: int


class YamlFile:
    """What is in a YAML file: dicts with keys as they are written, lists and scalars.

    Attributes:
        data: the document; None if there is none.
        places: where each value is. That of a value in a mapping is its key's.
    """

    def __init__(self, path: Path, text: str):
        self.path = path
        self.places: dict[Keys, Place] = {}
        self._nodes = 0
        self._loader: Any = None
        try:
            self._check_size(text)
            self._loader = _Loader(text)
            try:
                root = self._loader.get_single_node()
                self.data: Any = None if root is None else self._value(root, ())
            finally:
                self._loader.dispose()
        except yaml.YAMLError as error:
            raise self._syntax(error, text) from None

    def error(self, keys: Keys, message: str) -> InputError:
        """Return an error with the place of a value, or of the innermost part that is there."""
        there = keys
        while there not in self.places and there:
            there = there[:-1]
        place = self.places.get(there, Place(1, 1))
        return InputError(f"{self.path}:{place.line}:{place.column}: {message}")

    def line(self, keys: Keys) -> int:
        return self.places[keys].line

    def _check_size(self, text: str) -> None:
        """Refuse what would take much memory or a deep stack, before it is composed."""
        depth = 0
        for nodes, event in enumerate(yaml.parse(text, Loader=_Loader)):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > MAX_DEPTH:
                raise self._at(event, f"is nested deeper than {MAX_DEPTH}; expected less")
            if nodes > MAX_NODES:
                raise self._at(event, f"has more than {MAX_NODES} values; expected fewer")

    def _value(self, node: Any, keys: Keys) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._at(node, f"aliases make more than {MAX_NODES} values; expected fewer")
        if len(keys) > MAX_DEPTH:  # an alias that contains itself
            raise self._at(node, f"is nested deeper than {MAX_DEPTH}; expected less")
        self.places.setdefault(keys, _place(node))
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, keys)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self._value(part, (*keys, n)) for n, part in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        raise self._at(node, "has a tag; expected a plain mapping or list")

    def _scalar(self, node: Any) -> Any:
        tag = node.tag.removeprefix(_TAG)
        if tag in ("str", "timestamp", "value"):  # the last: a lone "="
            return node.value
        if tag not in ("null", "bool", "int", "float"):
            raise self._at(node, "has an unknown tag; expected none")
        try:
            if len(node.value) <= MAX_DIGITS:
                return self._loader.construct_object(node)
            raise ValueError
        except (ValueError, LookupError):  # of "!!int x", too
            raise self._at(node, f"cannot be read as {tag}; expected another value") from None

    def _mapping(self, node: Any, keys: Keys, *, merged: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merges: list[Any] = []
        lines: dict[str, Place] = {}
        for key, value in node.value:
            if key.tag == f"{_TAG}merge":
                merges.append(value)
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise self._at(key, "a key is a mapping or a list; expected text")
            name, place = key.value, _place(key)
            if name in lines:
                raise self._at(
                    key, f"{shortened(name)} is in line {lines[name].line} too; expected it once"
                )
            lines[name] = place
            self.places.setdefault((*keys, name), place)  # the first is the one that counts
            found[name] = self._value(value, (*keys, name))
        for merge in merges:  # what is written out wins
            parts = merge.value if isinstance(merge, yaml.SequenceNode) else [merge]
            for part in parts:
                if not isinstance(part, yaml.MappingNode) or merged >= MAX_DEPTH:
                    raise self._at(merge, "<< does not name a mapping; expected one")
                for name, value in self._mapping(part, keys, merged=merged + 1).items():
                    found.setdefault(name, value)
        return found

    def _at(self, node: Any, message: str) -> InputError:
        line, column = _place(node)
        return InputError(f"{self.path}:{line}:{column}: {message}")

    def _syntax(self, error: yaml.YAMLError, text: str) -> InputError:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        if mark is not None:
            # The names in a message may be part of a secret: an alias *name is a token
            # that begins with an asterisk.
            problem = re.sub(r"(['\"])[^'\"<]{5,}\1", "...", getattr(error, "problem", None) or "")
            where, why = Place(mark.line + 1, mark.column + 1), one_line(problem)
        else:
            before = text[: getattr(error, "position", 0)]
            where = Place(before.count("\n") + 1, len(before) - before.rfind("\n"))
            why = one_line(getattr(error, "reason", "") or "")
        why = why or "cannot be read"
        return InputError(f"{self.path}:{where.line}:{where.column}: is not YAML: {why}")


def read(path: Path) -> YamlFile:
    """Read a YAML file: one document, in UTF-8, as `yaml.safe_load` does, but with keys as written.

    Raises:
        InputError: it cannot be read, is too large or no YAML, or has a key twice; with the place.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except ValueError:  # a null byte in its name
        raise InputError(f"{path}: there is no such file") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES} bytes; expected a configuration")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise InputError(f"{path}:{line}:{column}: is not UTF-8") from None
    return YamlFile(path, text)


def _place(node: Any) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)
