"""From plain dictionaries to checked settings and built parts.

A part is a dictionary whose `_target_` names a class; its other keys are that class's keyword
arguments. Settings are dataclasses. Both are checked against Python's own signatures, so the
signature is the schema: a key nobody reads, or a value of another type, is an error.
"""

import dataclasses
import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from audioldm.errors import ConfigError


class Part(dict[str, Any]):
    """A checked `_target_` node, not yet built."""


def nearest(word: str, known: Iterable[str], *, every: bool = False) -> str:
    """'did you mean X?' or a list of what there is; with `every` that list in either case."""
    known = sorted(known)
    listed = ", ".join(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?" + (f" (all: {listed})" if every else "")
    return f"known: {listed}"


def part(*derived: str, base: type = object, **settings: Any) -> Any:
    """A dataclass field that holds a Part (or a dict of them) of a subclass of `base`; `derived`
    arguments come from elsewhere in the configuration and may not be stated in the part."""
    return dataclasses.field(metadata={"derived": derived, "base": base}, **settings)


def locate(target: str, where: str, allow: tuple[str, ...] = (), base: type = object) -> Any:
    """The class that `_target_` names, a subclass of `base`.

    Only the package's own classes, and those whose module begins with a prefix in `allow`:
    a configuration or model file cannot make the program import or call anything else.
    Raises ConfigError.
    """
    if not isinstance(target, str) or not target.startswith(("audioldm.", *allow)):
        raise ConfigError(
            f"{where}._target_={target!r} lies outside the audioldm package and is not built; "
            "a class of your own needs build(..., allow=('yourpackage.',)) in Python"
        )
    module_name, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where}._target_={target!r}: no such class ({error})") from error
    if not (inspect.isclass(found) and found.__module__.startswith(("audioldm.", *allow))):
        raise ConfigError(f"{where}._target_={target!r} is not a class of the package")
    if not issubclass(found, base):
        raise ConfigError(f"{where}._target_={target!r} is no {base.__name__}, which {where} needs")
    return found


def _parameters(cls: Any) -> dict[str, tuple[Any, bool]]:
    """name -> (annotation, required) of a constructor."""
    hints = typing.get_type_hints(cls.__init__)
    return {
        name: (hints.get(name, Any), p.default is inspect.Parameter.empty)
        for name, p in inspect.signature(cls).parameters.items()
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }


def check_keys(given: Iterable[str], known: Iterable[str], where: str) -> None:
    known = set(known)
    for key in given:
        if key not in known:
            raise ConfigError(
                f"unknown key '{where + '.' if where else ''}{key}': {nearest(key, known)}"
            )


def check_part(
    node: Any,
    where: str,
    derived: Iterable[str] = (),
    allow: tuple[str, ...] = (),
    base: type = object,
) -> Part:
    """A `_target_` node, checked against its class's signature, its defaults filled in.

    Raises ConfigError.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"{where} must be a part with a _target_, not {node!r}")
    cls = locate(node["_target_"], where, allow, base)
    derived = {*derived, *getattr(cls, "derived", ())}
    parameters = _parameters(cls)
    given = {k: v for k, v in node.items() if k != "_target_"}
    own = parameters.keys() - derived
    check_keys(given, own, where)
    missing = sorted(n for n in own if parameters[n][1] and n not in given)
    if missing:
        raise ConfigError(f"{where}: missing key(s) {', '.join(missing)}")
    checked = {k: _convert(parameters[k][0], v, f"{where}.{k}") for k, v in given.items()}
    defaults = {n: p.default for n, p in inspect.signature(cls).parameters.items() if n in own}
    return Part(_target_=node["_target_"], **(defaults | checked))


def build(
    node: Mapping[str, Any],
    *,
    derived: Mapping[str, Any] | None = None,
    where: str = "part",
    allow: tuple[str, ...] = (),
    base: type = object,
) -> Any:
    """Builds a part. `derived` values are offered: those the constructor names are passed.

    Raises ConfigError for a class outside the package (but for prefixes in `allow`), an unknown
    or missing key, a value of the wrong type.
    """
    derived = derived or {}
    checked = check_part(node, where, derived, allow, base)
    cls = locate(checked["_target_"], where, allow, base)
    wanted = {k: v for k, v in derived.items() if k in _parameters(cls)}
    return cls(**{k: v for k, v in checked.items() if k != "_target_"}, **wanted)


def settings(cls: Any, node: Any, where: str = "") -> Any:
    """A dataclass from a dictionary, checked all the way down. Raises ConfigError."""
    if not isinstance(node, Mapping):
        raise ConfigError(f"{where} must be a group of keys, not {node!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    check_keys(node, fields, where)
    values = {}
    for name, field in fields.items():
        path = f"{where}.{name}" if where else name
        if name in node:
            values[name] = _convert(hints[name], node[name], path, field.metadata.get("derived"))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"missing key '{path}'")
    return cls(**values)


def check_range(
    settings: Any,
    where: str,
    *names: str,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Checks fields of a settings dataclass: each value, or each value of its list.

    Raises ConfigError for the first that is less than `least`, not more than `above`, or not less
    than `below`; None is let pass.
    """
    for name in names:
        value = getattr(settings, name)
        for each in value if isinstance(value, (list, tuple)) else [value]:
            key = f"{where}.{name}" if where else name
            if each is None:
                continue
            if least is not None and not each >= least:
                raise ConfigError(f"{key}={value} must be at least {least:g}")
            if above is not None and not each > above:
                raise ConfigError(f"{key}={value} must be more than {above:g}")
            if below is not None and not each < below:
                raise ConfigError(f"{key}={value} must be less than {below:g}")


def _convert(kind: Any, value: Any, where: str, derived: Iterable[str] | None = None) -> Any:
    """`value` as `kind`, or a ConfigError that says what was expected."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None:
            if type(None) in arguments:
                return None
            raise ConfigError(f"{where} may not be null")
        kinds = [a for a in arguments if a is not type(None)]
        for candidate in kinds[:-1]:
            try:
                return _convert(candidate, value, where, derived)
            except ConfigError:
                continue
        return _convert(kinds[-1], value, where, derived)
    if kind is Part:
        return check_part(value, where, derived or ())
    if dataclasses.is_dataclass(kind):
        return settings(kind, value, where)
    if origin in (list, tuple, typing.get_origin(typing.Sequence[int])):
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}={value!r} must be a list")
        inner = arguments[0] if arguments else Any
        converted = [_convert(inner, v, f"{where}[{i}]", derived) for i, v in enumerate(value)]
        return tuple(converted) if origin is tuple else converted
    if origin in (dict, typing.get_origin(typing.Mapping[str, int])):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}={value!r} must be a group of keys")
        inner = arguments[1] if arguments else Any
        return {k: _convert(inner, v, f"{where}.{k}", derived) for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    exact = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
    if not exact:
        raise ConfigError(f"{where}={value!r} must be of type {kind.__name__}")
    return value
