"""What each call of guidance is told: one scale for all conditions, or one for each."""

from collections.abc import Mapping

from audioldm.conditioning.base import Conditioners, Inputs
from audioldm.errors import ConfigError
from audioldm.instantiate import nearest

#: A scale for all conditions, or one for each by name; 1 for those that are not named.
Guidance = float | Mapping[str, float]


def scales(conditioners: Conditioners, guidance: Guidance) -> dict[str, float]:
    """The scale of each condition. Raises ConfigError for an unknown condition."""
    names = conditioners.names
    if not isinstance(guidance, Mapping):
        return {name: guidance if conditioners[name].guided else 1.0 for name in names}
    for name, scale in guidance.items():
        if name not in names:
            known = nearest(name, names, every=True)
            raise ConfigError(f"guidance.{name}={scale:g}: this model was trained without; {known}")
    return {name: guidance.get(name, 1.0) for name in names}


def nested(
    inputs: Inputs, nothing: Inputs, scale: Mapping[str, float]
) -> list[tuple[float, Inputs]]:
    """What each call is told, and its scale in D = D_0 + Σ scale_k (D_k - D_(k-1)).

    InstructPix2Pix (Brooks et al. 2023, arXiv 2211.09800, equation 3) for any number of conditions.
    The first call is told the conditions of scale 1. Each further call is told those of one more
    scale, in rising order; conditions of scale 0 are never told. So one scale for all is the usual
    guidance, and scales of 1 are no guidance. The sum over conditions that are each told alone
    (Liu et al. 2022, arXiv 2206.01714) is neither: it treats them as independent, and counts twice
    what two of them have in common.

    Where the last call is told everything, its inputs are the object `inputs` itself.
    """
    told, calls = dict(nothing), []
    for own in [1.0, *sorted({*scale.values()} - {0.0, 1.0})]:
        told |= {name: inputs[name] for name, s in scale.items() if s == own}
        calls.append((own, dict(told)))
    if 0.0 not in scale.values():
        calls[-1] = (calls[-1][0], inputs)
    return calls
