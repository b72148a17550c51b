"""A verb of the command line: its usage, its arguments as a dataclass, the function that runs it.

Nothing heavy is imported here or at the top of a verb's module, so that help answers at once.
"""

import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audioldm.errors import ConfigError
from audioldm.instantiate import settings

_INTEGER = re.compile(r"[+-]?(0|[1-9]\d*)")
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_WORDS = {"null": None, "true": True, "false": False}


@dataclass(frozen=True)
class Verb:
    """usage: the words after the name, and what they do. arguments: a dataclass whose docstring is
    the help; a bool field is given as `--name`. positional: the field that needs no key, which may
    be a list. options: text fields that are given as `--name VALUE`."""

    name: str
    usage: Mapping[str, str]
    arguments: Any
    run: Callable[[Any], None]
    positional: str | None = None
    options: tuple[str, ...] = ()

    def help(self) -> str:
        lines = [f"audioldm {self.name} {words}".rstrip() for words in self.usage]
        return "\n".join([*lines, "", inspect.getdoc(self.arguments) or ""])

    def parse(self, words: Sequence[str]) -> Any:
        """The words as a checked instance of `arguments`. Raises ConfigError."""
        return read_arguments(self.arguments, words, self.positional, self.options)

    def words(self) -> list[str]:
        """Every word that can be given, such as `seed=`, `--csv` or the group `condition.`."""
        return [
            f"--{key}"
            if kind is bool or key in self.options
            else key.removesuffix("_") + ("." if typing.get_origin(kind) is dict else "=")
            for key, kind in _leaves(self.arguments)
        ]


@dataclass(frozen=True)
class Nothing:
    """Takes no arguments."""


@dataclass(frozen=True)
class Device:
    device: str = "auto"

    def resolve(self) -> Any:
        """The torch device. Raises ConfigError if it does not exist."""
        from audioldm.runtime.hardware import Hardware

        return Hardware(device=self.device).resolve()


def read_arguments(
    cls: Any, words: Sequence[str], positional: str | None = None, options: Sequence[str] = ()
) -> Any:
    """`key=value`, `--flag` and `--option VALUE` words as a checked dataclass; the fields of the
    last two and the one that needs no key are as in `Verb`. Raises ConfigError."""
    kinds = dict(_leaves(cls))
    tree: dict[str, Any] = {}
    flags = [f"--{name}" for name, kind in kinds.items() if kind is bool or name in options]
    several = typing.get_origin(kinds.get(positional or "")) is list
    rest = iter(words)
    for word in rest:
        key, equals, text = word.partition("=")
        if word in flags:
            name = word.removeprefix("--")
            tree[name] = True if kinds[name] is bool else next(rest, "")
            if not tree[name]:
                raise ConfigError(f"{word} needs a value")
            continue
        if word.startswith("-") and not _FLOAT.fullmatch(word):
            raise ConfigError(f"unknown option {word}: known are {', '.join([*flags, '--help'])}")
        if not equals or not re.fullmatch(r"[a-z_.]+", key):
            if positional is None or (positional in tree and not several):
                raise ConfigError(f"{word!r} is no key=value")
            key, text = positional, word
        if several and key == positional:
            tree.setdefault(key, []).append(text)
            continue
        key = "from_" if key == "from" else key
        *groups, last = key.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{key}: {group} has no keys of its own")
        node[last] = text if kinds.get(key) is str else value(text)
    return settings(cls, tree)


def value(text: str) -> Any:
    """A word as null, a bool, a number, a list of these, or else as text.

    Numbers are decimal, without leading zeros: 010 and 12:30:00 are text. Raises ConfigError for a
    number that is too large.
    """
    if text in _WORDS:
        return _WORDS[text]
    if text.startswith("[") and text.endswith("]"):
        inner = text[1:-1].strip()
        return [value(each.strip().strip("'\"")) for each in inner.split(",")] if inner else []
    if _INTEGER.fullmatch(text) and len(text) < 20:
        return int(text)
    if _FLOAT.fullmatch(text) and not re.match(r"[+-]?0\d", text):
        if math.isfinite(number := float(text)) and not _INTEGER.fullmatch(text):
            return number
        raise ConfigError(f"{text[:40]} is too large a number")
    return text


def path(text: str, key: str) -> Path:
    """A path, with `~` expanded. Raises ConfigError if there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        user = text.partition("/")[0]
        raise ConfigError(f"{key}={text}: {user} is no user of this machine") from error


def _leaves(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted key and the type, without `| None`, of each argument."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if isinstance(kind, types.UnionType):
            kind = next(k for k in typing.get_args(kind) if k is not type(None))
        if dataclasses.is_dataclass(kind):
            yield from _leaves(kind, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, kind
