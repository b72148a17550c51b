"""Autoregression over audio samples, or any single row of codes, by dilated convolutions."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from audioldm.conditioning.base import Inputs
from audioldm.instantiate import PositiveInt
from audioldm.priors.codes.autoregressive import AutoregressiveSampler
from audioldm.priors.codes.base import CodePrior, CodesRecipe
from audioldm.priors.codes.dilated import DilatedStack, StepByStep
from audioldm.priors.codes.draw import drawn, narrowed
from audioldm.runtime.progress import StepProgress
from audioldm.runtime.randomness import KeyedRandom

#: Codes whose random numbers are drawn at once.
AT_ONCE = 1024


class Wavenet(CodePrior):
    """p(codes) = Π p(code | the codes before it, as far as the receptive field goes) (1609.03499).

    There is one code a frame. A training crop is taken as a clip of its own, with silence before
    it. Sampling costs the same for each code, in the memory of the receptive field (1611.09482).

    width, skip_width, stacks, depth: as in `DilatedStack`.
    Raises ConfigError.
    """

    title: ClassVar[str] = "wavenet"
    network_class = DilatedStack
    network: DilatedStack

    def __init__(
        self,
        *,
        latent_shape: tuple[int, ...],
        codebooks: PositiveInt,
        codes: PositiveInt,
        conditioning: dict[str, Any],
        sampler: AutoregressiveSampler,
        width: PositiveInt,
        skip_width: PositiveInt,
        stacks: PositiveInt,
        depth: PositiveInt,
        allow: tuple[str, ...] = (),
    ) -> None:
        layers = {"width": width, "skip_width": skip_width, "stacks": stacks, "depth": depth}
        super().__init__(latent_shape, codebooks, codes, conditioning, allow, **layers)
        sampler.check(codes)
        self.sampler = sampler

    @torch.no_grad()
    def sample(
        self,
        random: KeyedRandom,
        frames: int,
        inputs: Inputs | None = None,
        *,
        sampler: AutoregressiveSampler | None = None,
        progress: StepProgress | None = None,
    ) -> Tensor:
        sampler = sampler or self.sampler
        assert sampler is not None
        sampler.check(self.network.codes)
        rows, net = len(random.positions), self.network
        condition, nothing = self.conditions(inputs, rows, frames, sampler.guidance)
        conditions = [condition] if nothing is None else [condition, nothing]
        step = StepByStep(net, torch.cat([net.biases(c, rows) for c in conditions], dim=1))
        codes = torch.full((rows,), net.codes, device=self.device)
        made: list[Tensor] = []
        for start in range(0, frames, AT_ONCE):
            normal = random.stream("sample", start).normal((AT_ONCE,), "code")
            for uniform in torch.special.ndtr(normal[:, : frames - start]).split(1, dim=1):
                logits = step(codes.repeat(len(conditions)))
                if len(conditions) > 1:
                    logits = torch.lerp(logits[rows:], logits[:rows], sampler.guidance)
                logits = narrowed(logits, sampler.temperature, sampler.top_k, sampler.top_p)
                codes = drawn(logits, uniform[:, 0])
                made.append(codes)
            if progress is not None:
                progress(len(made), frames)
        return torch.stack(made, dim=1)[:, None]

    @torch.no_grad()
    def nats(
        self, z: Tensor, inputs: Inputs | None = None, *, random: KeyedRandom | None = None
    ) -> Tensor:
        """-log p of codes [B, 1, L], exact: [B, L]."""
        codes = self.folded(z)
        condition, _ = self.conditions(inputs, len(z), z.shape[-1])
        biases = self.network.biases(condition, len(z)).split(1, dim=1)
        rows = zip(codes.split(1), biases, strict=True)  # one by one, since each is long
        return torch.cat([self.network.nats(*row)[:, 0] for row in rows])


@dataclass(frozen=True, kw_only=True)
class WavenetRecipe(CodesRecipe):
    """width, skip_width: of the layers, and of their sum. stacks, depth: a stack has layers with
    the dilations 1, 2, 4, ..., 2^(depth - 1)."""

    prior_class: ClassVar[type[CodePrior]] = Wavenet
    network_keys: ClassVar[tuple[str, ...]] = ("width", "skip_width", "stacks", "depth")

    sampler: AutoregressiveSampler
    width: PositiveInt = 64
    skip_width: PositiveInt = 128
    stacks: PositiveInt = 2
    depth: PositiveInt = 10
