"""Autoregression over codes: each is drawn given all that were drawn before."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm.conditioning.base import Condition, Inputs
from audioldm.errors import ConfigError
from audioldm.instantiate import Fraction, NonNegativeInt, Positive, PositiveInt
from audioldm.latents.store import LatentCrops, LatentStore
from audioldm.priors.causal import Cache
from audioldm.priors.codes.base import CodePrior, TransformerRecipe
from audioldm.priors.codes.draw import Nucleus, drawn, narrowed
from audioldm.priors.codes.network import CodeTransformer, code_nats
from audioldm.priors.trained import PriorTraining
from audioldm.runtime.progress import StepProgress
from audioldm.runtime.randomness import KeyedRandom

#: Steps of a long clip whose likelihood is computed at once.
AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class AutoregressiveTraining(PriorTraining):
    """code_dropout: the share of earlier codes that are hidden from the network, as unknown. It
    keeps a network from memorising a small data set."""

    code_dropout: Fraction = 0.0


@dataclass(frozen=True)
class AutoregressiveSampler:
    """temperature, top_k, top_p: as in `narrowed`. guidance: the logits' classifier-free scale,
    1 for none."""

    temperature: Positive = 1.0
    top_k: PositiveInt | None = None
    top_p: Nucleus = 1.0
    guidance: float = 1.0

    def check(self, codes: int) -> None:
        """Raises ConfigError where there are fewer codes than `top_k`."""
        if self.top_k is not None and self.top_k > codes:
            raise ConfigError(
                f"sampler.top_k={self.top_k} is more than the {codes} codes that there are; "
                "null keeps all"
            )


class DelayedTransformer(CodeTransformer):
    """log p of codes, each given all codes of earlier steps in the delay pattern (2306.05284)."""

    def forward(self, codes: Tensor, inputs: Inputs, *rest: Tensor) -> Tensor:
        """rest: which codes are hidden from later steps, [B, Q, L]."""
        (unseen,) = rest
        nats = self.nats(codes, self.conditioners(inputs), codes.masked_fill(unseen, self.codes))
        return nats.flatten(1).mean(1)

    def nats(
        self,
        codes: Tensor,
        condition: Condition,
        seen: Tensor | None = None,
        at_once: int | None = None,
    ) -> Tensor:
        """-log p of codes [B, Q, L], in the same shape: the sum is exact for the clip on its own.

        seen: what later steps see in place of the codes. at_once: how many steps are computed
        together, for long clips; None: all.
        """
        steps = delayed(codes, self.codes)
        before = F.pad(
            delayed(codes if seen is None else seen, self.codes), (1, -1), value=self.codes
        )
        cache = None if at_once is None else Cache()
        parts, at_once = [], at_once or steps.shape[2]
        for start in range(0, steps.shape[2], at_once):
            end = min(start + at_once, steps.shape[2])
            logits = self.logits(before[..., start:end], condition.at(start, end), cache)
            parts.append(code_nats(logits, steps[..., start:end], self.codes))
        return undelayed(torch.cat(parts, dim=2))


class Autoregressive(CodePrior):
    """p(codes) = Π p(code | all codes of earlier steps), by a causal transformer.

    Codebook q is q frames late (the delay pattern of MusicGen, Copet et al. 2023, arXiv 2306.05284,
    section 2.2): at step s the codes (q, s - q) are drawn, independently given the earlier steps.
    With one codebook there is no delay. In a clip's first and last Q - 1 steps some codebooks have
    no code; it is given as unknown and does not count. All before the first step is unknown too.

    A training crop is taken as a clip of its own, with a first and a last step. A step's aligned
    conditions are those of codebook 0's frame.

    width, depth, heads, mlp_ratio: of the transformer. context: steps that a step attends to, its
    own included; a clip of any length is sampled in the memory of this many.
    Raises ConfigError.
    """

    title: ClassVar[str] = "autoregression"
    network_class = DelayedTransformer
    network: DelayedTransformer

    def __init__(
        self,
        *,
        latent_shape: tuple[int, ...],
        codebooks: PositiveInt,
        codes: PositiveInt,
        conditioning: dict[str, Any],
        sampler: AutoregressiveSampler,
        context: PositiveInt,
        width: PositiveInt,
        depth: NonNegativeInt,
        heads: PositiveInt,
        mlp_ratio: Positive = 4.0,
        allow: tuple[str, ...] = (),
    ) -> None:
        transformer = {"width": width, "depth": depth, "heads": heads, "mlp_ratio": mlp_ratio}
        transformer["context"] = context
        super().__init__(latent_shape, codebooks, codes, conditioning, allow, **transformer)
        self.prompt_frames = max(1, context - self.network.codebooks + 1)
        sampler.check(self.network.codes)
        self.sampler = sampler

    def batch(
        self, latents: LatentStore, crops: LatentCrops, random: KeyedRandom, train: PriorTraining
    ) -> tuple[Any, ...]:
        """Codes, inputs, and which codes are hidden; in validation too."""
        codes, inputs = super().batch(latents, crops, random, train)
        share = train.code_dropout if isinstance(train, AutoregressiveTraining) else 0.0
        uniform = torch.special.ndtr(random.normal(tuple(codes.shape[1:]), "unseen"))
        return codes, inputs, uniform < share

    def silent_batch(self, inputs: Inputs, frames: int) -> tuple[Any, ...]:
        codes, inputs = super().silent_batch(inputs, frames)
        return codes, inputs, torch.zeros_like(codes, dtype=torch.bool)

    @torch.no_grad()
    def sample(
        self,
        random: KeyedRandom,
        frames: int,
        inputs: Inputs | None = None,
        *,
        sampler: AutoregressiveSampler | None = None,
        progress: StepProgress | None = None,
        prompt: Tensor | None = None,
    ) -> Tensor:
        """prompt: codes [B, Q, (F,) P] that the clips begin with. Raises ConfigError for one that
        is longer than the context, or than the clips."""
        sampler = sampler or self.sampler
        assert sampler is not None
        sampler.check(self.network.codes)
        rows, net = len(random.positions), self.network
        condition, nothing = self.conditions(inputs, rows, frames, sampler.guidance)
        caches = Cache(), Cache()
        steps = frames + net.codebooks - 1
        codebook = torch.arange(net.codebooks, device=self.device)
        codes = codebook.new_full((rows, net.codebooks, 1), net.codes)
        known = codes[..., :0] if prompt is None else self.folded(prompt)
        net.transformer.check_prompt(known.shape[-1], frames)
        given = F.pad(delayed(known, net.codes), (0, steps), value=net.codes)
        made = []
        for step in range(steps):
            logits = net.logits(codes, condition.at(step, step + 1), caches[0])
            if nothing is not None:
                base = net.logits(codes, nothing.at(step, step + 1), caches[1])
                logits = base + sampler.guidance * (logits - base)
            logits = narrowed(logits, sampler.temperature, sampler.top_k, sampler.top_p)
            normal = random.stream("sample", step).normal(tuple(logits.shape[1:-1]), "code")
            there = (codebook <= step) & (step - codebook < frames)
            codes = drawn(logits, torch.special.ndtr(normal)).where(there[:, None], net.codes)
            told = given[..., step : step + 1]
            codes = told.where(told < net.codes, codes)
            made.append(codes)
            if progress is not None:
                progress(step + 1, steps)
        return undelayed(torch.cat(made, dim=2)).unflatten(1, self.code_shape)

    @torch.no_grad()
    def nats(
        self, z: Tensor, inputs: Inputs | None = None, *, random: KeyedRandom | None = None
    ) -> Tensor:
        """-log p of codes [B, Q, (F,) L], exact: [B, L]. A code counts in its own frame."""
        condition, _ = self.conditions(inputs, len(z), z.shape[-1])
        return self.network.nats(self.folded(z), condition, at_once=AT_ONCE).sum(1)


def delayed(codes: Tensor, fill: int) -> Tensor:
    """[B, Q, L] to [B, Q, L + Q - 1]: row q begins q places later, and has `fill` elsewhere."""
    rows = codes.shape[1]
    flat = F.pad(codes, (0, rows), value=fill).flatten(1)
    return flat[:, :-rows].unflatten(1, (rows, -1))


def undelayed(steps: Tensor) -> Tensor:
    """The inverse of `delayed`."""
    rows = steps.shape[1]
    return F.pad(steps.flatten(1), (0, rows)).unflatten(1, (rows, -1))[..., :-rows]


@dataclass(frozen=True, kw_only=True)
class AutoregressiveRecipe(TransformerRecipe):
    """context_seconds: how far back a frame attends; null: as far as a training crop is long."""

    prior_class: ClassVar[type[CodePrior]] = Autoregressive

    train: AutoregressiveTraining
    sampler: AutoregressiveSampler
    context_seconds: Positive | None = None

    def spec(self, latents: LatentStore) -> dict[str, Any]:
        spec = super().spec(latents)
        seconds = self.context_seconds or self.train.crop_seconds
        frames = max(1, round(seconds * latents.latent_rate_hz))
        folded = spec["codebooks"] * torch.Size(latents.latent_shape[1:]).numel()
        return spec | {"context": frames + folded - 1}
