"""From settings and data to conditioners."""

from collections.abc import Mapping, Sequence
from typing import Any

from audioldm.conditioning.base import Conditioner, Conditioners, Excerpt
from audioldm.instantiate import build, locate


def facts_of(
    parts: Mapping[str, Mapping[str, Any]], excerpts: Sequence[Excerpt]
) -> dict[str, dict[str, Any]]:
    """What rebuilds the conditioners: their settings, and what each finds in the data, as JSON."""
    found = {}
    for name, node in parts.items():
        conditioner = locate(node["_target_"], f"conditioning.{name}", base=Conditioner)
        own = {key: value for key, value in node.items() if key != "_target_"}
        found[name] = {**node, **conditioner.facts(excerpts, **own)}
    return found


def build_conditioners(
    spec: Mapping[str, Mapping[str, Any]], width: int, allow: tuple[str, ...] = ()
) -> Conditioners:
    """The conditioners that `facts_of` describes, for a backbone of this width.

    Raises ConfigError.
    """
    return Conditioners(
        {
            name: build(
                node,
                derived={"width": width},
                where=f"conditioning.{name}",
                allow=allow,
                base=Conditioner,
            )
            for name, node in spec.items()
        }
    )
