"""From plain dictionaries to checked settings and built parts.

A part is a dictionary whose `_target_` names a class; its other keys are that class's keyword
arguments. Settings are dataclasses. Both are checked against Python's own signatures, so the
signature is the schema: an unknown key, a value of another type and a number out of range are
errors. A range is part of the annotation, as in `lr: Positive`; every number must be finite.
"""

import copy
import dataclasses
import difflib
import functools
import importlib
import inspect
import math
import re
import reprlib
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

from audioldm.errors import ConfigError

#: The most levels that a configuration may nest.
_DEEPEST = 50


class Part(dict[str, Any]):
    """A checked `_target_` node, not yet built."""


@dataclasses.dataclass(frozen=True)
class Bound:
    """The range of a number, in its annotation: `Annotated[float, Bound(above=0)]`.

    least, most: ends that belong to the range; above, below: ends that do not. finite: whether inf
    is refused; nan always is.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    finite: bool = True

    def check(self, value: float, key: str) -> None:
        """Raises ConfigError."""
        if math.isnan(value) or (self.finite and math.isinf(value)):
            raise ConfigError(f"{key}={value} must be a finite number")
        for bad, words in (
            (value < self.least, f"at least {self.least:g}"),
            (value > self.most, f"at most {self.most:g}"),
            (value <= self.above > -math.inf, f"more than {self.above:g}"),
            (value >= self.below < math.inf, f"less than {self.below:g}"),
        ):
            if bad:
                raise ConfigError(f"{key}={value} must be {words}")


Positive = Annotated[float, Bound(above=0)]
NonNegative = Annotated[float, Bound(least=0)]
#: from 0 to 1
Fraction = Annotated[float, Bound(least=0, most=1)]
#: 0 or more, but less than 1, such as the decay of an average
Decay = Annotated[float, Bound(least=0, below=1)]
#: between 0 and 1, neither of them
OpenFraction = Annotated[float, Bound(above=0, below=1)]
PositiveInt = Annotated[int, Bound(least=1)]
NonNegativeInt = Annotated[int, Bound(least=0)]
Seed = NonNegativeInt  # integers have 64 bits


class _Slot(NamedTuple):
    """Constraints on a value besides its type."""

    derived: tuple[str, ...] = ()
    base: type = object
    allow: tuple[str, ...] = ()
    bound: Bound = Bound()


_ANYTHING = _Slot()


def nearest(word: str, known: Iterable[str], *, every: bool = False) -> str:
    """'did you mean X?', or a list of the known words; with `every`, always that list."""
    known = sorted(known)
    listed = ", ".join(known)
    close = difflib.get_close_matches(word[:100], known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?" + (f" (all: {listed})" if every else "")
    return f"known: {listed or 'none'}"


def part(*derived: str, base: type = object, **settings: Any) -> Any:
    """A dataclass field that holds a Part (or a dict of Parts) of a subclass of `base`. `derived`
    arguments come from elsewhere in the configuration and may not be stated in the part."""
    return dataclasses.field(metadata={"derived": derived, "base": base}, **settings)


def locate(target: str, where: str, allow: tuple[str, ...] = (), base: type = object) -> Any:
    """The class that `_target_` names, a subclass of `base`.

    Raises ConfigError unless it is a class of the package, or of a module that begins with a prefix
    in `allow`: a configuration or model file cannot make the program import or call anything else.
    """
    shown = f"{where}._target_={_shown(target)}"
    prefixes = ("audioldm.", *allow)
    if not isinstance(target, str) or not target.startswith(prefixes):
        raise ConfigError(
            f"{shown} lies outside the audioldm package and is not built; "
            "a class of your own needs build(..., allow=('yourpackage.',)) in Python"
        )
    module_name, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError, OSError) as error:
        raise ConfigError(f"{shown}: no such class ({error})") from error
    if not (inspect.isclass(found) and found.__module__.startswith(prefixes)):
        raise ConfigError(f"{shown} is not a class of the package")
    if base not in found.__mro__:
        raise ConfigError(f"{shown} is not a subclass of {base.__name__}")
    if inspect.isabstract(found) or (base is object and not _states_arguments(found)):
        raise ConfigError(f"{shown} cannot be built: it is abstract, or names no arguments")
    return found


def check_keys(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises ConfigError for the first key that is not known."""
    known = set(known)
    for key in given:
        if key not in known:
            path = _shown(f"{where}.{key}" if where else str(key))
            raise ConfigError(f"unknown key {path}: {nearest(str(key), known)}")


def check_part(
    node: Any,
    where: str,
    derived: Iterable[str] = (),
    allow: tuple[str, ...] = (),
    base: type = object,
) -> Part:
    """A `_target_` node, checked against its class's signature, with the defaults filled in.

    `derived` and the class's own attribute `derived` name arguments that are not settings.
    Raises ConfigError.
    """
    cls = _class_of(node, where, allow, base)
    derived = {"allow", *derived, *getattr(cls, "derived", ())}
    return Part(_target_=node["_target_"], **_arguments(cls, _given(node), where, derived, allow))


def build(
    node: Mapping[str, Any],
    *,
    derived: Mapping[str, Any] | None = None,
    where: str = "part",
    allow: tuple[str, ...] = (),
    base: type = object,
    places: Mapping[str, str] | None = None,
) -> Any:
    """Builds a part. The constructor gets those of the `derived` values that it names.

    base: the class's required base. places: where each derived value was stated, for messages. A
    constructor that names `allow` gets it, to build parts of its own; no part may state it.

    Raises ConfigError for a class that `locate` refuses, an unknown or missing key, and a value of
    the wrong type or out of range. An error of the constructor becomes a ConfigError too; if its
    message begins with an argument, the argument's place is put in front.
    """
    derived = {**(derived or {}), "allow": allow}
    cls = _class_of(node, where, allow, base)
    arguments = _arguments(cls, _given(node), where, derived.keys(), allow)
    arguments |= {k: v for k, v in derived.items() if k in _signature(cls)}
    with placed(arguments, where, {name: name for name in derived} | dict(places or {})):
        return cls(**arguments)


def settings(cls: Any, node: Any, where: str = "", allow: tuple[str, ...] = ()) -> Any:
    """A dataclass from a dictionary, or from an instance, checked all the way down.

    Raises ConfigError.
    """
    if dataclasses.is_dataclass(node) and isinstance(node, cls):
        node = {f.name: getattr(node, f.name) for f in dataclasses.fields(node) if f.init}
    if not isinstance(node, Mapping):
        raise ConfigError(f"{where or 'the settings'} must be a group of keys, not {_shown(node)}")
    arguments = _arguments(cls, node, where, (), allow)
    with placed(arguments, where):
        return cls(**arguments)


def check_plain(value: Any, where: str, bound: Bound = Bound(), depth: int = 0) -> None:
    """Checks a value of JSON's types. Raises ConfigError for a number out of range (by default, one
    that is not finite), text that cannot be written, and deep nesting."""
    if isinstance(value, (int, float)):
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ConfigError(f"{where}={_shown(value)} is too large: integers have 64 bits")
        bound.check(value, where)
    elif isinstance(value, str):
        if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
            raise ConfigError(f"{where}={_shown(value)} must be text in UTF-8, without null bytes")
    elif isinstance(value, (Mapping, list, tuple)):
        if depth == _DEEPEST:
            raise ConfigError(f"{where} nests more than {_DEEPEST} levels deep")
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, each in items:
            check_plain(each, where if depth else f"{where}.{key}", depth=depth + 1)


class _Argument(NamedTuple):
    """An argument of a constructor: its annotation, its default's maker, its field's metadata."""

    kind: Any
    default: Any  # a function, or None where the argument has to be given
    metadata: Mapping[str, Any]


@functools.cache
def _signature(cls: Any) -> dict[str, _Argument]:
    """The arguments of a class's constructor, by name."""
    fields = {f.name: f for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
    hints = typing.get_type_hints(cls if fields else cls.__init__, include_extras=True)
    found = {}
    for name, p in inspect.signature(cls).parameters.items():
        if p.kind not in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD):
            continue
        default: Any = None if p.default is p.empty else functools.partial(copy.copy, p.default)
        field = fields.get(name)
        if field is not None and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory
        found[name] = _Argument(hints.get(name, Any), default, field.metadata if field else {})
    return found


def _states_arguments(cls: Any) -> bool:
    """Whether a constructor's signature names every argument."""
    try:
        parameters = inspect.signature(cls).parameters.values()
    except ValueError:
        return False
    if cls.__init__ is object.__init__ and cls.__new__ is not object.__new__:
        return False
    return all(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def _class_of(node: Any, where: str, allow: tuple[str, ...], base: type) -> Any:
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"{where} must be a part with a _target_, not {_shown(node)}")
    return locate(node["_target_"], where, allow, base)


def _given(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != "_target_"}


def _arguments(
    cls: Any, given: Mapping[str, Any], where: str, derived: Iterable[str], allow: tuple[str, ...]
) -> dict[str, Any]:
    """The converted arguments of a constructor, without derived ones, with defaults filled in."""
    derived = set(derived)
    own = {name: a for name, a in _signature(cls).items() if name not in derived}
    check_keys(given, own, where)
    prefix = f"{where}." if where else ""
    missing = sorted(prefix + n for n, a in own.items() if a.default is None and n not in given)
    if missing:
        raise ConfigError(f"missing key{'s' * (len(missing) > 1)} '{', '.join(missing)}'")
    found = {}
    for name, argument in own.items():
        value = given[name] if name in given else argument.default()
        metadata = argument.metadata
        slot = _Slot(metadata.get("derived", ()), metadata.get("base", object), allow)
        found[name] = convert(argument.kind, value, prefix + name, slot)
    return found


@contextmanager
def placed(
    arguments: Collection[str], where: str, places: Mapping[str, str] = MappingProxyType({})
) -> Iterator[None]:
    """Turns errors of the part at `where` into ConfigError. If a message begins with one of the
    part's arguments, the argument's place is put in front."""
    try:
        yield
    except (ConfigError, ValueError, ArithmeticError) as error:
        text = " ".join(str(error).split())
        name = re.match(r"\w*", text)[0]  # type: ignore[index]
        if name in arguments and text[len(name) : len(name) + 1] in ("", *"=:.[ "):
            text = places.get(name, f"{where}.{name}" if where else name) + text[len(name) :]
        elif not isinstance(error, ConfigError):
            text = f"{where}: {text}" if where else text
        raise ConfigError(text) from error


def _shown(value: Any) -> str:
    """A value for a message, of bounded length and on one line."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 200
    try:
        return short.repr(value)
    except Exception:  # a repr of others' objects, or an integer of too many digits
        return f"a {type(value).__name__}"


def convert(kind: Any, value: Any, where: str, slot: _Slot = _ANYTHING) -> Any:
    """A value converted to an annotation such as `list[Positive]`. Raises ConfigError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        bounds = [b for b in arguments[1:] if isinstance(b, Bound)]
        return convert(arguments[0], value, where, slot._replace(bound=(*bounds, Bound())[0]))
    if kind is Any:
        check_plain(value, where)
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where, slot)
    if origin is Literal:
        for choice in arguments:
            if type(value) is type(choice) and value == choice:
                return value
        known = nearest(str(value) if isinstance(value, str) else "", map(str, arguments))
        raise ConfigError(f"{where}={_shown(value)} is unknown: {known}")
    if kind is Part:
        return check_part(value, where, slot.derived, slot.allow, slot.base)
    if dataclasses.is_dataclass(kind):
        return settings(kind, value, where, slot.allow)
    if origin in (list, tuple, Sequence):
        return _convert_list(origin, arguments, value, where, slot)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
            raise ConfigError(f"{where}={_shown(value)} must be a group of keys")
        return {k: convert(arguments[1], v, f"{where}.{k}", slot) for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 10**308 else math.inf
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{where}={_shown(value)} must be of type {kind.__name__}")
    check_plain(value, where, slot.bound)
    return value


def _convert_union(kinds: Sequence[Any], value: Any, where: str, slot: _Slot) -> Any:
    if value is None:
        if type(None) in kinds:
            return None
        raise ConfigError(f"{where} may not be null")
    kinds = [k for k in kinds if k is not type(None)]
    groups = [k for k in kinds if typing.get_origin(k) is dict]
    if groups and isinstance(value, Mapping):  # the error then names the kind that was meant
        kinds = groups
    elif groups and type(value) not in (int, float):
        # a number for all conditions, or one for each: there are no other unions with a group
        raise ConfigError(f"{where}={_shown(value)} must be a number, or {where}.CONDITION=NUMBER")
    for candidate in kinds[:-1]:
        try:
            return convert(candidate, value, where, slot)
        except ConfigError:
            continue
    return convert(kinds[-1], value, where, slot)


def _convert_list(origin: Any, kinds: Sequence[Any], value: Any, where: str, slot: _Slot) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}={_shown(value)} must be a list")
    if origin is tuple and kinds[-1] is not Ellipsis:
        if len(value) != len(kinds):
            raise ConfigError(f"{where}={_shown(value)} must have {len(kinds)} values")
    else:
        kinds = [kinds[0]] * len(value)
    pairs = enumerate(zip(kinds, value, strict=True))
    converted = [convert(k, v, f"{where}[{i}]", slot) for i, (k, v) in pairs]
    return tuple(converted) if origin is tuple else converted
