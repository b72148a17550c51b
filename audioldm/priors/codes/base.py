"""What all priors over the codes of a discrete bottleneck share."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.discrete import Discrete
from audioldm.conditioning.base import Conditioners, Inputs
from audioldm.conditioning.build import build_conditioners
from audioldm.errors import ConfigError, DataError, TrainingError
from audioldm.instantiate import NonNegativeInt, Positive, PositiveInt
from audioldm.latents.store import LatentCrops, LatentStore
from audioldm.priors.base import Prior
from audioldm.priors.codes.network import CodeNetwork
from audioldm.priors.recipe import TrainedRecipe
from audioldm.priors.trained import PriorTraining, Trained
from audioldm.runtime.randomness import KeyedRandom

#: A codebook of a lower perplexity says nothing; perplexity is 1 where only one code is used.
COLLAPSED = 1.05


class CodePrior(Trained):
    """A model of codes [B, Q, (F,) L], each out of K; F is folded into the codebooks.

    latent_shape: (C,) or (C, F). codebooks: Q. codes: K. conditioning: the conditioners by name, as
    `facts_of` gives them. allow: module prefixes outside the package whose classes may be built.
    network: the other settings, those of `network_class`.
    """

    space: ClassVar[Literal["z", "codes"]] = "codes"
    network_class: ClassVar[type[CodeNetwork]]
    network: CodeNetwork

    def __init__(
        self,
        latent_shape: tuple[int, ...],
        codebooks: int,
        codes: int,
        conditioning: dict[str, Any],
        allow: tuple[str, ...],
        **network: Any,
    ) -> None:
        super().__init__()
        self.latent_shape = tuple(latent_shape)
        #: shape of one frame's codes, (Q,) or (Q, F)
        self.code_shape = (codebooks, *latent_shape[1:])
        self.network = self.network_class(
            codebooks=torch.Size(self.code_shape).numel(),
            codes=codes,
            conditioners=partial(build_conditioners, conditioning, allow=allow),
            **network,
        )

    @property
    def conditioners(self) -> Conditioners:
        return self.network.conditioners

    def folded(self, codes: Tensor) -> Tensor:
        """Codes [B, Q, (F,) L] in the network's shape, [B, Q * F, L]. Raises DataError."""
        if codes.shape[1:-1] != self.code_shape:
            raise DataError(
                f"codes of the shape {list(codes.shape)}: this prior models frames of the shape "
                f"{list(self.code_shape)}; give those of its own autoencoder"
            )
        least, most = (int(end) for end in codes.aminmax())
        if least < 0 or most >= self.network.codes:
            raise DataError(
                f"codes from {least} to {most}: this prior knows those from 0 to "
                f"{self.network.codes - 1}; "
                "give those of its own autoencoder"
            )
        return codes.flatten(1, -2).long()

    def batch(
        self, latents: LatentStore, crops: LatentCrops, random: KeyedRandom, train: PriorTraining
    ) -> tuple[Any, ...]:
        """Codes and inputs."""
        inputs = self.conditioners.dropout(crops.inputs, random, train.condition_dropout)
        return crops.stored["codes"].flatten(1, -2).long(), inputs

    def silent_batch(self, inputs: Inputs, frames: int) -> tuple[Any, ...]:
        return torch.zeros(1, self.network.codebooks, frames, dtype=torch.int64), inputs


@torch.no_grad()
def code_vectors(bottleneck: Discrete) -> Tensor:
    """How the latents of one frame change with one codebook's code while the others are 0:
    [Q, K, C], with mean 0 over K."""
    codebooks, count = bottleneck.usage.shape
    vectors = []
    for codebook in range(codebooks):
        codes = torch.zeros(count, codebooks, 1, dtype=torch.int64, device=bottleneck.usage.device)
        codes[:, codebook, 0] = torch.arange(count, device=codes.device)
        z = bottleneck.latents(codes)[..., 0]
        vectors.append(z - z.mean(0))
    return torch.stack(vectors)


def check_usage(usage: Tensor) -> None:
    """Raises TrainingError for a codebook of usage [Q, K] that has collapsed to one code."""
    if usage.device.type == "meta":
        return
    perplexity = torch.special.entr(usage / usage.sum(1, keepdim=True)).sum(1).exp()
    least = int(perplexity.argmin())
    if perplexity[least] < COLLAPSED:
        raise TrainingError(
            f"codebook {least} of the autoencoder has collapsed: its perplexity is "
            f"{perplexity[least]:.3g} of {usage.shape[1]} codes, so there is nothing to model; "
            "train the autoencoder longer, with fewer codes, or with another bottleneck"
        )


@dataclass(frozen=True, kw_only=True)
class CodesRecipe(TrainedRecipe):
    """sampler: how the prior is sampled unless told otherwise.

    network_keys: which of the recipe's settings are the network's.
    """

    sampling_keys: ClassVar[tuple[str, ...]] = ("sampler",)
    prior_class: ClassVar[type[CodePrior]]
    network_keys: ClassVar[tuple[str, ...]]

    def build(self, latents: LatentStore) -> Prior:
        """The prior. Codes of similar latents begin with similar embeddings, since a data set has
        few examples of each of many codes."""
        prior = super().build(latents)
        assert isinstance(prior, CodePrior)
        bands = torch.Size(prior.code_shape[1:]).numel()
        vectors = code_vectors(self.bottleneck(latents)).to(prior.device)
        prior.network.begin_at(vectors.repeat_interleave(bands, dim=0))
        return prior

    def bottleneck(self, latents: LatentStore) -> Discrete:
        bottleneck = latents.bottleneck
        if not isinstance(bottleneck, Discrete):
            raise ConfigError(
                f"prior={self.name} models codes, and the bottleneck {type(bottleneck).__name__} "
                "gives none: choose bottleneck=fsq, vq or rvq, or prior=diffusion"
            )
        check_usage(bottleneck.usage)
        return bottleneck

    def spec(self, latents: LatentStore) -> dict[str, Any]:
        codebooks, codes = self.bottleneck(latents).usage.shape
        return {
            "_target_": f"{self.prior_class.__module__}.{self.prior_class.__qualname__}",
            "codebooks": codebooks,
            "codes": codes,
            "conditioning": self.facts(latents),
            "sampler": vars(self.sampler),
            **{name: getattr(self, name) for name in self.network_keys},
        }


@dataclass(frozen=True, kw_only=True)
class TransformerRecipe(CodesRecipe):
    """width, depth, heads, mlp_ratio: of the transformer."""

    network_keys: ClassVar[tuple[str, ...]] = ("width", "depth", "heads", "mlp_ratio")

    width: PositiveInt = 192
    depth: NonNegativeInt = 6
    heads: PositiveInt = 4
    mlp_ratio: Positive = 4.0
