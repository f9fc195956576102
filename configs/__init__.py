"""Strict configuration: frozen dataclasses hold the defaults, YAML files hold only what differs from them.

A configuration is a set of named sections, each an instance of a frozen dataclass that lives beside the code it
configures. This module knows none of those dataclasses: the caller hands them over as `schema`.

    sections = load_config("mine.yaml", ["tracker.score_thresh=0.4"], {"tracker": TrackerConfig})
    sections["tracker"].score_thresh  # 0.4

Later sources win: defaults, then the file, then the overrides in their order.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

__all__ = ["dump_config", "load_config"]

PACKAGED = Path(__file__).resolve().parent


def load_config(
    path: str | Path | None, overrides: Sequence[str], schema: Mapping[str, type], others: Collection[str] = ()
) -> dict[str, Any]:
    """Read a configuration and check every value against the dataclasses it is for.

    Args:
        path: YAML file of `section: {key: value}`, or the bare name of a file shipped in this package, with or
            without `.yaml` (a file of that name in the working folder comes first); None for the defaults alone.
        overrides: strings `section.key=value`, the value in YAML syntax (`0.5`, `true`, `null`, `[384, 640]`).
        schema: section name -> dataclass. Its fields may be bool, int, float, str, Path, Literal, unions of these
            (Optional among them), and lists and tuples of them.
        others: sections that may be there, too, and are passed over: somebody else reads them.

    Returns:
        One instance for every section of `schema`, also for those that no source mentions.

    Raises:
        ValueError: no such file, invalid YAML, a duplicate or unknown key, a value of the wrong type, or a value the
            dataclass itself refuses. The message starts with `file:line` or the override of the keys it speaks of.
        TypeError: a field of `schema` has a type that YAML cannot hold.
    """
    values: dict[str, dict[str, Any]] = {section: {} for section in schema}
    origins: dict[str, dict[str, str]] = {section: {} for section in schema}
    hints = {section: _field_types(cls) for section, cls in schema.items()}
    known = [*schema, *others]
    entries = [] if path is None else _file_entries(_find(path), known)
    for origin, section, key, value in [*entries, *(_override_entry(text) for text in overrides)]:
        _check_known(origin, "section", section, known)
        if section in others:
            continue
        _check_known(origin, f"key in section {section!r}", key, hints[section])
        try:
            values[section][key] = _convert(value, hints[section][key])
        except _WrongTypeError as error:
            raise ValueError(f"{origin}: {section}.{key}: {error}") from None
        origins[section][key] = origin

    sections: dict[str, Any] = {}
    for section, cls in schema.items():
        try:
            sections[section] = cls(**values[section])
        except ValueError as error:
            words = set(re.findall(r"\w+", str(error)))
            named = [origin for key, origin in origins[section].items() if key in words]
            origin = ", ".join(named or origins[section].values()) or "defaults"
            raise ValueError(f"{origin}: section {section!r}: {error}") from error
    return sections


def dump_config(sections: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Turn sections into plain values, every field included, for printing and for storing in YAML or JSON.

    Args:
        sections: section name -> dataclass instance, as returned by `load_config`.

    Returns:
        section -> field -> bool, int, float, str, None or lists of them. Written as YAML it loads back to equal
        sections.
    """
    return {
        name: {field.name: _plain(getattr(section, field.name)) for field in dataclasses.fields(section)}
        for name, section in sections.items()
    }


class _WrongTypeError(Exception):
    """A value does not fit its field; the caller adds where it came from."""


class _Loader(yaml.SafeLoader):
    """Safe loading, with duplicate keys refused and every common spelling of a number read as one.

    PyYAML keeps the last of two equal keys, and takes `1e-3` and `-.5` for text.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"keys are names, got {key!r}", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key!r}", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+)$"),
    list("-+.0123456789"),
)

_Entry = tuple[str, str, str, Any]  # where it is written, section, key, value


def _find(path: str | Path) -> Path:
    path = Path(path)
    candidates = [path]
    if path.parent == Path() and not path.is_absolute():
        candidates += [PACKAGED / path.name, PACKAGED / f"{path.name}.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    shipped = ", ".join(sorted(file.stem for file in PACKAGED.glob("*.yaml"))) or "none"
    raise ValueError(f"{path}: no such config file; shipped with the package: {shipped}")


def _file_entries(path: Path, known: Sequence[str]) -> list[_Entry]:
    """All `key: value` pairs of a file, each with its line."""
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    entries: list[_Entry] = []
    try:
        root = loader.get_single_node()
        if root is None:  # an empty file, or comments only
            return []
        if not isinstance(root, yaml.MappingNode):
            raise ValueError(f"{path}:{_line(root)}: expected sections ({', '.join(known)}), got {root.value!r}")
        loader.construct_mapping(root, deep=True)  # checks the keys of every level
        for section_node, body in root.value:
            section = str(section_node.value)
            origin = f"{path}:{_line(section_node)}"
            _check_known(origin, "section", section, known)
            if isinstance(body, yaml.ScalarNode) and body.tag == "tag:yaml.org,2002:null":
                continue  # a section whose keys are all commented out
            if not isinstance(body, yaml.MappingNode):
                raise ValueError(f"{origin}: section {section!r}: expected `key: value` lines, got {body.value!r}")
            for key_node, value_node in body.value:
                value = loader.construct_object(value_node, deep=True)
                entries.append((f"{path}:{_line(key_node)}", section, str(key_node.value), value))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}{_describe(error)}") from error
    finally:
        loader.dispose()
    return entries


def _override_entry(text: str) -> _Entry:
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        raise ValueError(f"override {text!r}: expected section.key=value")
    try:
        return f"override {text!r}", section, key, yaml.load(value, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"override {text!r}{_describe(error)}") from error


def _describe(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    line = "" if mark is None else f":{mark.line + 1}"
    return f"{line}: {getattr(error, 'problem', None) or error}"


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _check_known(origin: str, what: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of: {', '.join(known)}"
    raise ValueError(f"{origin}: unknown {what}: {name!r}; {hint}")


def _field_types(cls: type) -> dict[str, Any]:
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"schema: expected dataclasses, got {cls!r}")
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _convert(value: Any, expected: Any) -> Any:
    """The value as type `expected`, or _WrongTypeError; it changes int to float, str to Path, list to tuple only."""
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        for option in args:
            try:
                return _convert(value, option)
            except _WrongTypeError:
                continue
    elif origin is Literal:
        for option in args:
            if value == option and type(value) is type(option):  # True == 1, yet they are not the same choice
                return value
    elif origin in (list, tuple):
        if isinstance(value, list):
            return _convert_items(value, expected, origin, args)
    elif expected is float:
        if type(value) in (int, float):
            return float(value)
    elif expected is Path:
        if isinstance(value, str):
            return Path(value)
    elif expected in (bool, int, str, type(None)):
        if type(value) is expected:  # not isinstance: a bool is an int to Python, never to a reader
            return value
    else:
        raise TypeError(f"configuration fields cannot be of type {_type_name(expected)}")
    raise _WrongTypeError(f"expected {_type_name(expected)}, got {value!r} ({_type_name(type(value))})")


def _convert_items(items: list[Any], expected: Any, origin: Any, args: tuple[Any, ...]) -> Any:
    if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
        if len(items) != len(args):
            raise _WrongTypeError(f"expected {_type_name(expected)}, got {items!r} ({len(items)} items)")
        item_types = args
    else:
        item_types = (args[0],) * len(items)
    try:
        return origin(_convert(item, item_type) for item, item_type in zip(items, item_types, strict=True))
    except _WrongTypeError as error:
        raise _WrongTypeError(f"expected {_type_name(expected)}, got {items!r}: {error}") from None


def _type_name(expected: Any) -> str:
    if expected is type(None):
        return "null"
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(option) for option in args)
    if origin is Literal:
        return "one of " + ", ".join(repr(option) for option in args)
    if origin in (list, tuple):
        return f"{origin.__name__}[{', '.join('...' if arg is Ellipsis else _type_name(arg) for arg in args)}]"
    return str(getattr(expected, "__name__", expected))


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value
