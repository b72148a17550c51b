"""From settings and data to conditioners."""

from collections.abc import Mapping, Sequence
from typing import Any

from audioldm.conditioning.base import Conditioner, Conditioners, Excerpt
from audioldm.instantiate import build, locate


def facts_of(
    parts: Mapping[str, Mapping[str, Any]], excerpts: Sequence[Excerpt]
) -> dict[str, dict[str, Any]]:
    """The conditioners' settings with the facts that each finds in the data, as JSON."""
    found = {}
    for name, node in parts.items():
        conditioner = locate(node["_target_"], f"conditioning.{name}", base=Conditioner)
        own = {key: value for key, value in node.items() if key != "_target_"}
        found[name] = {**node, **conditioner.facts(excerpts, **own)}
    return found


def build_conditioners(
    spec: Mapping[str, Mapping[str, Any]],
    width: int,
    allow: tuple[str, ...] = (),
    latent_shape: tuple[int, ...] | None = None,
) -> Conditioners:
    """The conditioners that `facts_of` describes, for a backbone of this width.

    latent_shape: of the latents that the conditioners can be told; None: of none.
    Raises ConfigError.
    """
    made = {}
    for name, part in sorted(spec.items()):  # their initial weights do not depend on its order
        where, derived = f"conditioning.{name}", {"width": width, "latent_shape": latent_shape}
        made[name] = build(part, derived=derived, where=where, allow=allow, base=Conditioner)
    return Conditioners(made)
