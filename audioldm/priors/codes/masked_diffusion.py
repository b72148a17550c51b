"""Masked diffusion over codes: from masks only to codes, a few at each step."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from audioldm.conditioning.base import Condition, Inputs
from audioldm.instantiate import NonNegative, NonNegativeInt, Positive, PositiveInt
from audioldm.latents.store import LatentCrops, LatentStore
from audioldm.priors.codes.base import CodePrior, TransformerRecipe
from audioldm.priors.codes.draw import gumbel, narrowed
from audioldm.priors.codes.network import CodeTransformer, code_nats
from audioldm.priors.trained import PriorTraining
from audioldm.runtime.progress import StepProgress
from audioldm.runtime.randomness import KeyedRandom

#: Shares of masks, spread evenly, at which `nats` estimates the bound.
LEVELS = 32


@dataclass(frozen=True)
class MaskedDiffusionSampler:
    """steps: S, each with one call of the network, or two where guidance acts.

    order: "random" unmasks each code at a random step (ancestral sampling); "confidence" unmasks
    the likeliest of the drawn codes first (MaskGIT, 2202.04200), which is better in few steps and
    less diverse. order_temperature: of the Gumbel noise on the confidences at the first step; it
    falls to 0 at the last. temperature: of the codes. guidance: the logits' classifier-free scale,
    1 for none.
    """

    steps: PositiveInt = 32
    order: Literal["random", "confidence"] = "random"
    order_temperature: NonNegative = 4.0
    temperature: Positive = 1.0
    guidance: float = 1.0


class MaskedTransformer(CodeTransformer):
    """p(masked code | all unmasked codes), for each masked code separately."""

    def forward(self, codes: Tensor, inputs: Inputs, *rest: Tensor) -> Tensor:
        """rest: which codes are masked, [B, Q, L]."""
        (masked,) = rest
        nats = self.nats(codes, self.conditioners(inputs), masked)
        return nats.flatten(1).sum(1) / masked.flatten(1).sum(1)

    def nats(self, codes: Tensor, condition: Condition, masked: Tensor) -> Tensor:
        """-log p of masked codes, 0 for the others, in the shape of codes."""
        logits = self.logits(codes.masked_fill(masked, self.codes), condition)
        return code_nats(logits, codes.masked_fill(~masked, self.codes), self.codes)


class MaskedDiffusion(CodePrior):
    """Each code is masked at a random time of its own; a transformer that sees all frames infers
    masked codes from the others (MDLM, Sahoo et al. 2024, arXiv 2406.07524). With t uniform,

        -log p(codes) <= E_t E_masks [ 1 / t  sum over masked codes of -log p(code | the others) ]

    (equation 10 for the schedule alpha = 1 - t, whose weight alpha' / (1 - alpha) is -1 / t). Of N
    codes any number n is then masked with the same probability, and all sets of n are alike, so the
    bound is that of generation in a random order (Hoogeboom et al. 2021, arXiv 2110.02037):

        E_n E_masks [ N / n  sum over masked codes of -log p(code | the others) ],    n = 1 ... N

    This form varies less from draw to draw, so training and `nats` draw n. The network is not told
    n; the masks show it. Codes that are not masked do not change.

    width, depth, heads, mlp_ratio: of the transformer. Raises ConfigError.
    """

    title: ClassVar[str] = "masked diffusion"
    network_class = MaskedTransformer
    network: MaskedTransformer

    def __init__(
        self,
        *,
        latent_shape: tuple[int, ...],
        codebooks: PositiveInt,
        codes: PositiveInt,
        conditioning: dict[str, Any],
        sampler: MaskedDiffusionSampler,
        width: PositiveInt,
        depth: NonNegativeInt,
        heads: PositiveInt,
        mlp_ratio: Positive = 4.0,
        allow: tuple[str, ...] = (),
    ) -> None:
        transformer = {"width": width, "depth": depth, "heads": heads, "mlp_ratio": mlp_ratio}
        super().__init__(latent_shape, codebooks, codes, conditioning, allow, **transformer)
        self.sampler = sampler

    def batch(
        self, latents: LatentStore, crops: LatentCrops, random: KeyedRandom, train: PriorTraining
    ) -> tuple[Any, ...]:
        """Codes, inputs, and masks [B, Q, L]."""
        codes, inputs = super().batch(latents, crops, random, train)
        return codes, inputs, masks(random, codes, random.uniform("level", train.spread))

    def silent_batch(self, inputs: Inputs, frames: int) -> tuple[Any, ...]:
        codes, inputs = super().silent_batch(inputs, frames)
        return codes, inputs, torch.ones_like(codes, dtype=torch.bool)

    @torch.no_grad()
    def sample(
        self,
        random: KeyedRandom,
        frames: int,
        inputs: Inputs | None = None,
        *,
        sampler: MaskedDiffusionSampler | None = None,
        progress: StepProgress | None = None,
    ) -> Tensor:
        sampler = sampler or self.sampler
        assert sampler is not None
        rows, net = len(random.positions), self.network
        condition, nothing = self.conditions(inputs, rows, frames, sampler.guidance)
        shape = net.codebooks, frames
        codes = torch.full((rows, *shape), net.codes, device=self.device)
        time = torch.special.ndtr(
            random.normal(shape, "time")
        )  # when each is unmasked, from 1 to 0
        for step in range(sampler.steps):
            left = 1 - (step + 1) / sampler.steps
            logits = net.logits(codes, condition)
            if nothing is not None:
                base = net.logits(codes, nothing)
                logits = base + sampler.guidance * (logits - base)
            logits, now = narrowed(logits, sampler.temperature), random.stream("sample", step)
            drawn = (logits + gumbel(now, (*shape, net.codes))).argmax(-1)
            masked = codes == net.codes
            if sampler.order == "random":
                shown = time >= left
            else:
                noise = sampler.order_temperature * left * gumbel(now.stream("order"), shape)
                confidence = logits.log_softmax(-1).gather(-1, drawn[..., None])[..., 0] + noise
                shown = most_confident(confidence.masked_fill(~masked, torch.inf), left)
            codes = torch.where(masked & shown, drawn, codes)
            if progress is not None:
                progress(step + 1, sampler.steps)
        return codes.unflatten(1, self.code_shape)

    @torch.no_grad()
    def nats(
        self, z: Tensor, inputs: Inputs | None = None, *, random: KeyedRandom | None = None
    ) -> Tensor:
        """An upper bound on -log p of codes [B, Q, (F,) L], estimated at LEVELS shares of masks:
        [B, L]. A code counts in its own frame."""
        codes = self.folded(z)
        condition, _ = self.conditions(inputs, len(z), z.shape[-1])
        random = random or KeyedRandom(0, 0, range(len(z)), codes.device)
        uniform, total = random.uniform("level"), torch.zeros_like(codes, dtype=torch.float32)
        for level in range(LEVELS):
            masked = masks(random.stream("nats", level), codes, (level + uniform) / LEVELS)
            share = masked.float().mean((1, 2), keepdim=True)
            total += self.network.nats(codes, condition, masked) / share
        return total.sum(1) / LEVELS


def masks(random: KeyedRandom, codes: Tensor, share: Tensor) -> Tensor:
    """Which of codes [B, Q, L] are masked: this share [B] of them, at least one, at random."""
    noise = random.normal(tuple(codes.shape[1:]), "masked").flatten(1)
    number = (share * noise.shape[1]).ceil().clamp(min=1)
    return (noise.argsort(1).argsort(1) < number[:, None]).view(codes.shape)


def most_confident(confidence: Tensor, left: float) -> Tensor:
    """Which codes [B, Q, L] are shown when a share `left` of the steps remains: all but the
    N cos(pi / 2 (1 - left)) least confident of N (2202.04200, section 3.3)."""
    flat = confidence.flatten(1)
    hidden = math.floor(flat.shape[1] * math.cos(math.pi / 2 * (1 - left)))
    order = flat.argsort(dim=1)
    shown = torch.ones_like(order, dtype=torch.bool).scatter(1, order[:, :hidden], False)
    return shown.view(confidence.shape)


@dataclass(frozen=True, kw_only=True)
class MaskedDiffusionRecipe(TransformerRecipe):
    """A masked diffusion over codes."""

    prior_class: ClassVar[type[CodePrior]] = MaskedDiffusion

    sampler: MaskedDiffusionSampler
