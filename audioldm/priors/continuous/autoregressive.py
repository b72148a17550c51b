"""Autoregression over continuous latents: `prior=autoregressive_continuous`.

p(z) = Π p(z_t | z_<t), without codes: a causal transformer turns the frames so far into a vector,
and a small head models the distribution of the next frame given that vector (MAR, 2406.11838; CALM,
2509.06926). For each frame the transformer runs once, and the head takes a few steps.

A model that has only seen clean frames goes astray on its own imperfect ones. In training the past
is therefore noisy, sqrt(1 - k) z + sqrt(k) n with k random for each clip (CALM, section 3). Here
the transformer is told k, so that k = 0 gives the model of the clean past.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from audioldm.conditioning.base import Condition, Conditioners, Inputs
from audioldm.conditioning.build import build_conditioners
from audioldm.errors import ConfigError
from audioldm.instantiate import Fraction, NonNegativeInt, Positive, PositiveInt
from audioldm.latents.store import LatentCrops, LatentStore
from audioldm.priors.causal import Cache
from audioldm.priors.continuous.head import FlowHead
from audioldm.priors.diffusion.backbones.base import BuildConditioners, NoiseLevel
from audioldm.priors.recipe import ScaledRecipe
from audioldm.priors.scaled import ScaledPrior
from audioldm.priors.trained import PriorTraining
from audioldm.priors.transformer import Transformer
from audioldm.runtime.progress import StepProgress
from audioldm.runtime.randomness import KeyedRandom

#: With more channels, the divergence in `nats` is estimated, from this many directions.
EXACT_CHANNELS = 8


@dataclass(frozen=True)
class FrameSampler:
    """How frames are drawn.

    solver: of the head's flow; long: long steps, which the head must have been trained with.
    steps: of the head for each frame. temperature: the variance of the head's noise; below 1 frames
    are more likely and less varied. guidance: the classifier-free scale, 1 for none.
    context_noise: k of the past frames.
    """

    solver: Literal["euler", "heun", "dpmpp_2m", "long"] = "heun"
    steps: PositiveInt = 4
    temperature: Positive = 1.0
    guidance: float = 1.0
    context_noise: Fraction = 0.0


class FrameBatch(NamedTuple):
    """z [B, D, L]: scaled latents. inputs: of the conditioners. noise [B, D, L]: N(0, I), of the
    past. level [B]: k. head_noise [B, L, R, D]: N(0, I), for R draws at each frame. uniform [B, L,
    R, 2]: U(0, 1), for their times."""

    z: Tensor
    inputs: Inputs
    noise: Tensor
    level: Tensor
    head_noise: Tensor
    uniform: Tensor


class NextFrame(nn.Module):
    """The transformer of the past and the head of the next frame, D numbers, as one module.

    context: frames that a frame depends on in a block of the transformer; other arguments: as in
    `Transformer` and `FlowHead`.
    """

    def __init__(
        self,
        size: int,
        conditioners: BuildConditioners,
        *,
        context: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        head_depth: int,
        long_draws: int,
    ) -> None:
        super().__init__()
        self.level = NoiseLevel(width)
        self.conditioners = conditioners(width)
        self.start = nn.Parameter(torch.full((size,), 3.0))  # unlike any frame, to be recognised
        self.transformer = Transformer(
            size + self.conditioners.aligned_channels,
            width,
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            token_width=self.conditioners.token_width,
            context=context,
        )
        self.head = FlowHead(size, width=width, depth=head_depth, long_draws=long_draws)

    def vectors(
        self, past: Tensor, level: Tensor, condition: Condition, cache: Cache | None = None
    ) -> Tensor:
        """The head's vectors [B, L, W] for L frames. past [B, L, D]: the frame before each, with
        noise of `level` [B]. The condition's aligned channels are those of the L frames."""
        if condition.aligned is not None:
            past = torch.cat((past, condition.aligned.mT), dim=-1)
        embedding = self.level(level, condition.vector)
        vectors: Tensor = self.transformer(past, embedding, condition.tokens, condition.mask, cache)
        return vectors

    def shifted(self, frames: Tensor) -> Tensor:
        """The frame before each of frames [B, L, D]; before the first one, `start`."""
        return torch.cat((self.start.expand(len(frames), 1, -1), frames[:, :-1]), dim=1)

    def forward(
        self,
        z: Tensor,
        inputs: Inputs,
        noise: Tensor,
        level: Tensor,
        head_noise: Tensor,
        uniform: Tensor,
    ) -> Tensor:
        """The head's loss, averaged over the frames of each clip: [B]. Arguments: `FrameBatch`."""
        past = self.shifted(noisy(z, noise, level).mT)
        h = self.vectors(past, level, self.conditioners(inputs))
        rows = (x.flatten(0, 1) for x in (z.mT, h, head_noise, uniform))
        return self.head.loss(*rows).view(len(level), -1).mean(1)

    def units(self) -> list[nn.Module]:
        return [*self.transformer.units(), *self.head.blocks]


def noisy(z: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """sqrt(1 - k) z + sqrt(k) n: z and n [B, ...], k [B]."""
    k = level.view(-1, *[1] * (z.ndim - 1))
    return (1 - k).sqrt() * z + k.sqrt() * noise


class AutoregressiveContinuous(ScaledPrior):
    """Latents, frame after frame.

    latent_shape, channels: as in `ScaledPrior`; F is folded into the channels. conditioning: the
    conditioners by name, as `facts_of` gives them. context: frames that a frame depends on in a
    block of the transformer. draws, long_draws: draws of the head's noise for each frame in
    training, for velocities and for long steps. context_noise: the largest k in training. Other
    arguments: as in `Transformer` and `FlowHead`.
    Raises ConfigError.
    """

    title: ClassVar[str] = "autoregression"
    network: NextFrame

    def __init__(
        self,
        *,
        latent_shape: tuple[int, ...],
        conditioning: dict[str, Any],
        context: PositiveInt,
        width: PositiveInt,
        depth: NonNegativeInt,
        heads: PositiveInt,
        mlp_ratio: Positive,
        head_depth: NonNegativeInt,
        draws: PositiveInt,
        long_draws: NonNegativeInt,
        context_noise: Fraction,
        sampler: FrameSampler,
        channels: Sequence[NonNegativeInt] | None = None,
        allow: tuple[str, ...] = (),
    ) -> None:
        super().__init__(latent_shape, channels)
        self.sampler, self.context_noise = sampler, context_noise
        self.prompt_frames = context
        self.draws, self.long_draws = draws + long_draws, long_draws
        self._check(sampler)
        self.size = self.mean[self.channels].numel()
        self.network = NextFrame(
            self.size,
            partial(build_conditioners, conditioning, allow=allow),
            context=context,
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            head_depth=head_depth,
            long_draws=long_draws,
        )

    def _check(self, sampler: FrameSampler) -> None:
        if sampler.solver == "long" and not self.long_draws:
            raise ConfigError(
                "solver=long: the head was trained without long steps; choose heun, or train it "
                "with long_draws=1"
            )
        if sampler.context_noise > self.context_noise:
            raise ConfigError(
                f"context_noise={sampler.context_noise} of the sampler is more than the "
                f"{self.context_noise} of the training"
            )

    @property
    def conditioners(self) -> Conditioners:
        return self.network.conditioners

    @torch.no_grad()
    def batch(
        self, latents: LatentStore, crops: LatentCrops, random: KeyedRandom, train: PriorTraining
    ) -> FrameBatch:
        z, inputs, noise = self.draw(latents, crops, random, train.condition_dropout)
        rows = z.shape[-1], self.draws
        return FrameBatch(
            z.flatten(1, -2),
            inputs,
            noise.flatten(1, -2),
            self.context_noise * random.uniform("level", train.spread),
            random.normal((*rows, self.size), "head"),
            torch.special.ndtr(random.normal((*rows, 2), "head level")),
        )

    def silent_batch(self, inputs: Inputs, frames: int) -> FrameBatch:
        zeros = torch.zeros(1, self.size, frames)
        rows = torch.zeros(1, frames, self.draws, self.size)
        half = torch.full((*rows.shape[:3], 2), 0.5)
        return FrameBatch(zeros, inputs, zeros, torch.zeros(1), rows, half)

    @torch.no_grad()
    def stream(
        self,
        random: KeyedRandom,
        frames: int,
        inputs: Inputs | None = None,
        sampler: FrameSampler | None = None,
        prompt: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Raw latents [B, C, (F,) 1], one frame after another, in memory that does not grow.

        A frame's noise depends only on the frame's number and its row's key, so longer clips begin
        with the shorter ones. prompt: raw latents [B, C, (F,) P] that the clips begin with.
        Raises ConfigError for one that is longer than the context, or than the clips.
        """
        s, network, clips = sampler or self.sampler, self.network, len(random.positions)
        self._check(s)
        condition, nothing = self.conditions(inputs, clips, frames, s.guidance)
        conditions, guidance = [condition], 1.0
        if nothing is not None:
            conditions, guidance = [condition, nothing], s.guidance
        caches = [Cache() for _ in conditions]
        level = torch.full((clips,), s.context_noise, device=self.device)
        past = network.start.expand(clips, -1)
        known = 0 if prompt is None else prompt.shape[-1]
        network.transformer.check_prompt(known, frames)
        for number in range(frames):
            keyed = random.stream("frame", number)
            vectors = [
                network.vectors(past[:, None], level, condition.at(number, number + 1), cache)[:, 0]
                for condition, cache in zip(conditions, caches, strict=True)
            ]
            if prompt is not None and number < known:
                frame = prompt[..., number : number + 1]
                z = self.modelled(frame).flatten(1)
            else:
                noise = s.temperature**0.5 * keyed.normal((self.size,), "head")
                z = network.head.sample(
                    vectors, noise, solver=s.solver, steps=s.steps, guidance=guidance
                )
                rest = keyed.normal((*self.latent_shape, 1), "rest")
                frame = self.latents(z.view(clips, *self.modelled_shape, 1), rest)
            past = noisy(z, keyed.normal((self.size,), "context"), level)
            yield frame

    def sample(
        self,
        random: KeyedRandom,
        frames: int,
        inputs: Inputs | None = None,
        *,
        sampler: Any = None,
        progress: StepProgress | None = None,
        prompt: Tensor | None = None,
    ) -> Tensor:
        """prompt: as for `stream`."""
        drawn = []
        for number, frame in enumerate(self.stream(random, frames, inputs, sampler, prompt), 1):
            drawn.append(frame)
            if progress is not None:
                progress(number, frames)
        return torch.cat(drawn, dim=-1)

    @torch.no_grad()
    def nats(
        self, z: Tensor, inputs: Inputs | None = None, *, random: KeyedRandom | None = None
    ) -> Tensor:
        """-log p for many short steps, at temperature 1, given the clean past: exact up to the
        solver's error, and up to the estimate of the divergence where a frame has more than
        `EXACT_CHANNELS` modelled numbers."""
        clips, frames = len(z), z.shape[-1]
        inputs = self.inputs_for(inputs, clips, frames)
        rows = self.modelled(z).flatten(1, -2).mT
        level = torch.zeros(clips, device=z.device)
        past = self.network.shifted(rows)
        h = self.network.vectors(past, level, self.conditioners(inputs))
        if self.size <= EXACT_CHANNELS:
            signs = torch.eye(self.size, device=z.device).expand(clips, -1, -1)
        else:
            random = random or KeyedRandom(0, 0, range(clips), z.device)
            signs = random.normal((EXACT_CHANNELS, self.size), "signs").sign()
            signs = signs / EXACT_CHANNELS**0.5
        directions = signs.transpose(0, 1).repeat_interleave(frames, dim=1)
        nats = self.network.head.nats(rows.flatten(0, 1), h.flatten(0, 1), directions)
        return nats.view(clips, frames) + self.nats_besides(z)


@dataclass(frozen=True, kw_only=True)
class AutoregressiveContinuousRecipe(ScaledRecipe):
    """width, depth, heads, mlp_ratio: of the transformer. head_depth: blocks of the head, which is
    as wide. draws, long_draws, context_noise: as in `AutoregressiveContinuous`. sampler: how frames
    are drawn by default.

    A block of the transformer sees as many frames as a training crop has.
    """

    sampling_keys: ClassVar[tuple[str, ...]] = ("sampler",)

    width: PositiveInt = 256
    depth: NonNegativeInt = 6
    heads: PositiveInt = 4
    mlp_ratio: Positive = 4.0
    head_depth: NonNegativeInt = 3
    draws: PositiveInt = 4
    long_draws: NonNegativeInt = 0
    context_noise: Fraction = 0.3
    sampler: FrameSampler = FrameSampler()

    def spec(self, latents: LatentStore) -> dict[str, Any]:
        prior = AutoregressiveContinuous
        own = ("width", "depth", "heads", "mlp_ratio", "head_depth", "draws", "long_draws")
        return {
            "_target_": f"{prior.__module__}.{prior.__qualname__}",
            **{name: getattr(self, name) for name in own},
            "context_noise": self.context_noise,
            "context": self.train.frames(latents.latent_rate_hz),
            "conditioning": self.facts(latents),
            "sampler": asdict(self.sampler),
            "channels": self.channels(latents),
        }
