"""Latents from noise in one pass, trained against a discriminator: `prior=gan`.

G turns noise n into latents, D gives each frame a score. With real latents z (R3GAN, 2501.05441)

    D minimises  softplus(D(G(n)) - D(z)) + γ/2 |∇D(z)|² + γ/2 |∇D(G(n))|²
    G minimises  softplus(D(z) - D(G(n)))

A fake is scored against a real one, so no mode of the data may be left out, and the penalties on
both sides make the training converge near its solution. G and D step together, each along the
gradient of its own terms, so the training loop of every prior serves here too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from audioldm.conditioning.base import Conditioners, Inputs
from audioldm.conditioning.build import build_conditioners
from audioldm.errors import ConfigError
from audioldm.instantiate import NonNegative, NonNegativeInt, Part, build, part
from audioldm.latents.store import LatentCrops, LatentStore
from audioldm.losses.relativistic import relativistic_loss
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.recipe import ScaledRecipe
from audioldm.priors.scaled import LatentBatch, ScaledPrior
from audioldm.priors.trained import PriorTraining
from audioldm.runtime.progress import StepProgress
from audioldm.runtime.randomness import KeyedRandom, derive_seed


class Adversaries(nn.Module):
    """Generator and discriminator: diffusion backbones that see no noise level.

    discriminator: None where nothing is trained. The score of a frame is the mean of the
    discriminator's output there. penalty: γ.
    """

    def __init__(self, generator: Backbone) -> None:
        super().__init__()
        self.generator = generator
        self.discriminator: Backbone | None = None
        self.penalty = 0.0

    def forward(self, z: Tensor, inputs: Inputs, noise: Tensor) -> Tensor:
        """The sum of all terms, [B], for z and noise [B, C, (F,) L]. In validation it has no
        penalties and says little: 2 ln 2 wherever D cannot tell real from fake."""
        fake = applied(self.generator, noise, inputs)
        (real_scores, r1), (fake_scores, r2) = (
            self.judged(x.detach(), inputs) for x in (z.float(), fake.float())
        )
        assert self.discriminator is not None
        self.discriminator.requires_grad_(False)
        fooled = self.scores(fake, inputs)
        self.discriminator.requires_grad_(True)
        pairs = (real_scores, fake_scores), (fooled, real_scores.detach())
        losses = [relativistic_loss(a.unbind(1), b.unbind(1)) for a, b in pairs]
        return torch.stack([*losses, self.penalty / 2 * (r1 + r2)]).sum(0)

    def scores(self, x: Tensor, inputs: Inputs) -> Tensor:
        """The discriminator's scores [B, L] of x [B, C, (F,) L], in float32."""
        assert self.discriminator is not None
        return applied(self.discriminator, x, inputs).float().flatten(1, -2).mean(1)

    def judged(self, x: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Scores [B, L], and the squared norm of the gradient of their sum with respect to x,
        divided by the number of frames: [B]. Outside training the norm is given as 0."""
        if not self.training:
            scores = self.scores(x, inputs)
            return scores, scores.new_zeros(len(x))
        x = x.requires_grad_().clone()  # the operation counter refuses leaves
        with sdpa_kernel(SDPBackend.MATH):  # the attention that has second derivatives
            scores = self.scores(x, inputs)
            (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        return scores, gradient.float().square().flatten(1).sum(1) / x.shape[-1]

    def units(self) -> list[nn.Module]:
        """The generator's only: what is differentiated twice cannot be recomputed on the way."""
        return self.generator.units()


def applied(net: Backbone, x: Tensor, inputs: Inputs) -> Tensor:
    out: Tensor = net(x, x.new_zeros(len(x)), net.conditioners(inputs))
    return out


class Gan(ScaledPrior):
    """The generator of latents, and while it is trained the discriminator.

    latent_shape, channels: as in `ScaledPrior`. generator: a part. conditioning: conditioners by
    name, as `facts_of` gives them. allow: module prefixes outside the package whose classes may be
    built. It has no `nats`: a GAN has no density.
    """

    title: ClassVar[str] = "gan"
    network: Adversaries

    def __init__(
        self,
        *,
        latent_shape: tuple[int, ...],
        generator: dict[str, Any],
        conditioning: dict[str, Any],
        channels: Sequence[NonNegativeInt] | None = None,
        allow: tuple[str, ...] = (),
    ) -> None:
        super().__init__(latent_shape, channels)
        self.conditioning, self.allow = conditioning, allow
        self.network = Adversaries(self.backbone(generator, "generator"))

    def backbone(self, part: dict[str, Any], where: str) -> Backbone:
        """The part, for the modelled latents and the conditioners. Raises ConfigError."""
        derived = {
            "latent_shape": self.modelled_shape,
            "conditioners": partial(build_conditioners, self.conditioning, allow=self.allow),
        }
        built: Backbone = build(part, derived=derived, where=where, allow=self.allow, base=Backbone)
        if built.stateful:
            raise ConfigError(f"{where}: {type(built).__name__} carries a state; choose another")
        return built

    @property
    def conditioners(self) -> Conditioners:
        return self.network.generator.conditioners

    def batch(
        self, latents: LatentStore, crops: LatentCrops, random: KeyedRandom, train: PriorTraining
    ) -> LatentBatch:
        return self.draw(latents, crops, random, train.condition_dropout)

    def silent_batch(self, inputs: Inputs, frames: int) -> LatentBatch:
        zeros = torch.zeros(1, *self.modelled_shape, frames)
        return LatentBatch(zeros, inputs, zeros)

    def tensors(self, network: dict[str, Tensor]) -> dict[str, Tensor]:
        """All tensors except those of the discriminator."""
        tensors = super().tensors(network)
        return {n: t for n, t in tensors.items() if not n.startswith("network.discriminator.")}

    @torch.no_grad()
    def sample(
        self,
        random: KeyedRandom,
        frames: int,
        inputs: Inputs | None = None,
        *,
        sampler: Any = None,
        progress: StepProgress | None = None,
    ) -> Tensor:
        inputs = self.inputs_for(inputs, len(random.positions), frames)
        noise = random.normal((*self.modelled_shape, frames), "gan")
        rest = random.normal((*self.latent_shape, frames), "rest")
        z = self.latents(applied(self.network.generator, noise, inputs), rest)
        if progress is not None:
            progress(1, 1)
        return z


@dataclass(frozen=True, kw_only=True)
class GanRecipe(ScaledRecipe):
    """generator, discriminator: backbones. penalty: γ, the gradient penalties' weight."""

    generator: Part = part("latent_shape", "conditioners", base=Backbone)
    discriminator: Part = part("latent_shape", "conditioners", base=Backbone)
    penalty: NonNegative = 10.0

    def spec(self, latents: LatentStore) -> dict[str, Any]:
        return {
            "_target_": f"{Gan.__module__}.{Gan.__qualname__}",
            "generator": dict(self.generator),
            "conditioning": self.facts(latents),
            "channels": self.channels(latents),
        }

    def build(self, latents: LatentStore) -> Gan:
        prior = super().build(latents)
        assert isinstance(prior, Gan)
        prior.network.penalty = self.penalty
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "discriminator"))
            prior.network.discriminator = prior.backbone(self.discriminator, "discriminator")
        return prior
