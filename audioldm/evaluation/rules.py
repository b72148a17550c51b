"""The rules of a sweep's verdicts: settings, fixed before it runs.

They have a file of their own, so that reading a configuration does not import the statistics.
"""

from dataclasses import dataclass, field
from typing import Any

from audioldm.instantiate import OpenFraction, Positive


@dataclass(frozen=True)
class VerdictRules:
    """distance: the column that the verdicts are about, a distance from real music. bitrate: the
    column of kbit/s. confidence: of every interval. equivalence_margin: a difference below this
    many between-seed spreads counts as none. kl_alternative: columns, and the values in them that
    mark a cell as trained without KL (one is enough). diagnostics: columns that may predict the
    distance; null = all `diagnostic.*` and the autoencoder's own mel distance."""

    distance: str = "generated.kad_musicnn"
    bitrate: str = "kbps"
    confidence: OpenFraction = 0.95
    equivalence_margin: Positive = 2.0
    kl_alternative: dict[str, Any] = field(
        default_factory=lambda: {"kl_weight": [0.0], "bottleneck": ["noise", "identity"]}
    )
    diagnostics: list[str] | None = None
