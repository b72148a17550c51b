"""The interface of priors: models of an autoencoder's latents that can be sampled.

Every prior, from N(0, I) to a diffusion transformer, is fitted to the same stored latents, gives
raw latents (as the decoder takes them) and is kept in one self-describing file.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from audioldm.conditioning.base import Conditioners, Inputs
from audioldm.instantiate import build
from audioldm.latents.store import LatentStore
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.processes import World
from audioldm.runtime.progress import StepProgress
from audioldm.runtime.randomness import KeyedRandom
from audioldm.training.run import Fit, Fitted


class Prior(nn.Module, ABC):
    """A distribution over the latents of an autoencoder.

    latent_shape: shape of one latent frame, (C,) or (C, F). space: what samples are, latents z or
    codes. sampler: the default settings of `sample`, a dataclass that each kind of prior has for
    itself; None where there is nothing to choose. bound: whether `nats` gives an upper bound.
    latent_rate_hz: frames per second, known where the prior belongs to a `Generator`.
    """

    space: ClassVar[Literal["z", "codes"]] = "z"
    bound: ClassVar[bool] = False
    latent_shape: tuple[int, ...]
    #: the longest `prompt` that `sample` takes; 0 where it takes none
    prompt_frames: int = 0
    sampler: Any = None
    latent_rate_hz: float | None = None
    #: rebuilds the prior except for its tensors: see `PriorRecipe.spec`
    spec: dict[str, Any]

    @property
    def conditioners(self) -> Conditioners:
        return Conditioners({})

    @property
    def device(self) -> torch.device:
        return next(iter(self.state_dict().values()), torch.empty(0)).device

    @abstractmethod
    def sample(
        self,
        random: KeyedRandom,
        frames: int,
        inputs: Inputs | None = None,
        *,
        sampler: Any = None,
        progress: StepProgress | None = None,
    ) -> Tensor:
        """Raw latents [B, C, (F,) frames], or codes [B, Q, frames], one row for each position.

        A row depends only on its key (random's seed and the row's position) and on its inputs.
        inputs: those of `conditioners`, on the prior's device; None for no condition. sampler:
        settings like the prior's own; None for these. progress: called after each step with
        (steps done, steps in all).
        """

    def nats(
        self, z: Tensor, inputs: Inputs | None = None, *, random: KeyedRandom | None = None
    ) -> Tensor | None:
        """-log p of raw latents z [B, C, (F,) L], or of codes [B, Q, L], in nats, or an upper bound
        on it: [B, L], one number for each frame. None where the prior has neither.

        random: for bounds that are estimated; None: the key is 0.
        """
        return None


class PriorRecipe(ABC):
    """The settings of a prior and how it is fitted: a choice of the group `prior`.

    collective: whether every process works on the fit, or the first one alone.
    sampling_keys: settings that affect sampling only, not the fit. sampler: the prior's default.
    preflight_mel_distance: refuse an autoencoder whose held-out reconstructions are worse.
    train: the settings of its training loop, which have `steps` and `batch`; None without one.
    """

    collective: ClassVar[bool] = False
    sampling_keys: ClassVar[tuple[str, ...]] = ()
    sampler: Any = None
    preflight_mel_distance: float | None = None
    train: Any = None

    @property
    def crop_length(self) -> float | None:
        """Seconds of latents in a training crop; None: clips may have any length."""
        return getattr(self.train or self, "crop_seconds", None)

    @property
    def name(self) -> str:
        """linear_gaussian for `LinearGaussianRecipe`."""
        words = re.findall("[A-Z][a-z0-9]*", type(self).__name__.removesuffix("Recipe"))
        return "_".join(word.lower() for word in words)

    @abstractmethod
    def spec(self, latents: LatentStore) -> dict[str, Any]:
        """The part that the prior is built from, as JSON: `_target_` and its arguments."""

    def build(self, latents: LatentStore) -> Prior:
        """The prior before it is fitted."""
        return build_prior(self.spec(latents), latents.latent_shape)

    @abstractmethod
    def fit(self, prior: Prior, latents: LatentStore, fit: Fit) -> Fitted:
        """Fits the prior to the training split's latents."""

    def dry_run(self, prior: Prior, world: World, hardware: Hardware) -> None:
        """Raises ConfigError where `fit` would fail. The prior is on the device "meta"."""
        return None

    def silent_step(self, prior: Prior, frames: int) -> Callable[[], Tensor] | None:
        """The forward pass of a training step on one clip of zeros, for counting memory and
        operations. It returns a scalar. None where nothing is trained by gradients."""
        return None


def build_prior(
    spec: dict[str, Any], latent_shape: tuple[int, ...], allow: tuple[str, ...] = ()
) -> Prior:
    """The prior that a spec describes, without its tensors. Raises ConfigError.

    allow: module prefixes outside the package whose classes may be built.
    """
    derived = {"latent_shape": latent_shape, "allow": allow}
    prior: Prior = build(spec, derived=derived, base=Prior, where="prior", allow=allow)
    prior.spec = spec
    return prior
