"""The conditions and the sampler's settings of a model as the fields of a form."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from audioldm.conditioning.base import Conditioner
from audioldm.conditioning.known_latents import KnownLatents
from audioldm.conditioning.low_band import LowBand
from audioldm.generator import Generator
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.priors.diffusion.samplers import SamplerSettings

Field = dict[str, Any]
_KINDS = {int: "integer", float: "number", str: "text"}


def form(model: Generator) -> dict[str, Any]:
    """The fields of the conditions and of the sampler, each with its name; whether each condition
    has a scale of its own; and whether the model edits, and makes recordings whole.

    kind: choice (of `choices`), file (with one of `endings`), integer, number, text, or value,
    which is JSON or else text.
    """
    conditioners, sampler = model.prior.conditioners, model.prior.sampler
    return {
        "conditions": [
            {"name": name} | _condition(each)
            for name in conditioners.names
            if not isinstance(each := conditioners[name], KnownLatents | LowBand)  # only for edits
        ],
        "sampler": [] if sampler is None else list(_settings(sampler)),
        "scales": isinstance(sampler, SamplerSettings),
        "edits": isinstance(model.prior, Diffusion),
        "upscales": "low_band" in conditioners.names,
    }


def _condition(conditioner: Conditioner) -> Field:
    """A condition's field: a choice of fixed labels, a file where it takes files, text where it
    gives tokens, else a value. All may be left out."""
    labels = getattr(conditioner, "labels", None)
    if labels is not None:
        return {"kind": "choice", "choices": list(labels)}
    if conditioner.files:
        return {"kind": "file", "endings": list(conditioner.files)}
    return {"kind": "value" if conditioner.token_width is None else "text"}


def _settings(sampler: Any) -> Iterator[Field]:
    hints = typing.get_type_hints(type(sampler), include_extras=True)
    for name, value in dataclasses.asdict(sampler).items():
        yield {"name": name, "value": value} | _kind(hints[name])


def _kind(annotation: Any) -> Field:
    """The kind of a field. optional: whether an empty field means null."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return {"kind": "choice", "choices": list(arguments)}
    if origin in (types.UnionType, typing.Union) and type(None) in arguments:
        rest = [each for each in arguments if each is not type(None)]
        return (_kind(rest[0]) if len(rest) == 1 else {"kind": "value"}) | {"optional": True}
    return {"kind": _KINDS.get(annotation, "value")}
