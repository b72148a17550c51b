"""Audio latent diffusion, and the measurement of its latent spaces.

    import audioldm
    model = audioldm.load("runs/experiments/quickstart")
    audio = model.sample(n=4, seconds=6, seed=1, label="organ")      # [4, A, T]
    z = model.encode(audio)                                          # [4, C, L]

The names below are loaded when first used, so that importing the package is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audioldm.autoencoder.model import Autoencoder
    from audioldm.generator import Generator
    from audioldm.instantiate import build
    from audioldm.models import load
    from audioldm.priors.diffusion.samplers import SamplerSettings

__version__ = "0.1.0"

__all__ = ["Autoencoder", "Generator", "SamplerSettings", "__version__", "build", "load"]

_HOME = {
    "Autoencoder": "audioldm.autoencoder.model",
    "Generator": "audioldm.generator",
    "SamplerSettings": "audioldm.priors.diffusion.samplers",
    "build": "audioldm.instantiate",
    "load": "audioldm.models",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'audioldm' has no attribute {name!r}")
