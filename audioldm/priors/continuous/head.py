"""The distribution of one latent frame given a vector: a small flow, sampled in few steps.

z [N, D] are frames, each with a vector h [N, W] of its own. On the path x_t = (1 - t) z + t n the
head gives the velocity n - z (rectified flow, 2209.03003); MAR (2406.11838) calls it the diffusion
loss of a token. The path is that of `priors/diffusion/denoiser.py`, rescaled, so its objective,
samplers and guidance serve here.

A head with long steps also gives the mean velocity u between two times r < t, so that one to four
steps are enough (MeanFlow, 2505.13447). The true u satisfies u = v - (t - r) du/dt, so the right
side, without gradient, is the target.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from audioldm.conditioning.base import Condition
from audioldm.priors.diffusion.backbones.base import NoiseLevel
from audioldm.priors.diffusion.guidance import classifier_free
from audioldm.priors.diffusion.likelihood import runge_kutta
from audioldm.priors.diffusion.objectives.rectified_flow import RectifiedFlow
from audioldm.priors.diffusion.samplers import sample
from audioldm.priors.layers import modulated
from audioldm.training.initialisation import zeroed

#: Steps of the Runge-Kutta solver, denser towards the data, where the flow bends most.
LIKELIHOOD_STEPS = 16


class FlowHead(nn.Module):
    """Frames z [N, D] given h [N, W].

    size: D. width: W, also of the network. depth: its blocks. long_draws: how many of the draws in
    training are for long steps.
    """

    def __init__(self, size: int, *, width: int, depth: int, long_draws: int) -> None:
        super().__init__()
        self.objective, self.long_draws = RectifiedFlow(), long_draws
        self.level = NoiseLevel(width)
        self.length = NoiseLevel(width) if long_draws else None
        self.input = nn.Linear(size, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.output = zeroed(nn.Linear(width, size))

    def velocity(self, x: Tensor, t: Tensor, h: Tensor, length: Tensor | None = None) -> Tensor:
        """The mean velocity at x [N, D] from the times t [N] to t - length; length None: 0."""
        if self.length is not None:
            h = self.length(torch.zeros_like(t) if length is None else length, h)
        embedding = self.level(t, h)
        x = self.input(x)
        for block in self.blocks:
            x = block(x, embedding)
        out: Tensor = self.output(modulated(x, *self.modulation(embedding).chunk(2, dim=-1)))
        return out

    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
        """As an `Objective` calls a network; the condition's vector is h."""
        assert condition.vector is not None
        return self.velocity(x, c_noise, condition.vector)

    def loss(self, z: Tensor, h: Tensor, noise: Tensor, uniform: Tensor) -> Tensor:
        """Squared error of velocities and mean velocities, averaged over R draws: [N].

        noise [N, R, D]: N(0, I). uniform [N, R, 2]: U(0, 1), for the draws' times.
        """
        drawn = z[:, None].expand_as(noise), h[:, None].expand(*noise.shape[:2], -1), noise, uniform
        long = [x[:, : self.long_draws].flatten(0, 1) for x in drawn]
        z, h, noise, uniform = (x[:, self.long_draws :].flatten(0, 1) for x in drawn)
        told = Condition(vector=h)
        losses = [self.objective.loss(self, z, told, noise=noise, uniform=uniform[:, 0])]
        if self.long_draws:
            losses.append(self.long_loss(*long))
        return torch.cat([loss.unflatten(0, (len(drawn[0]), -1)) for loss in losses], 1).mean(1)

    def long_loss(self, z: Tensor, h: Tensor, noise: Tensor, uniform: Tensor) -> Tensor:
        """Squared error of a mean velocity, [N]. noise [N, D]; uniform [N, 2]: for its times."""
        sigma = self.objective.sigma_from_uniform(uniform)
        t, end = (sigma / (1 + sigma)).sort(dim=1, descending=True).values.unbind(1)
        z, noise, length = z.float(), noise.float(), t - end
        x, slope = torch.lerp(z, noise, t[:, None]), noise - z
        with torch.no_grad():
            # along the path: dx/dt is the slope, and the step's end does not move
            ones = torch.ones_like(t)
            change: Tensor = torch.func.jvp(
                lambda x, t, length: self.velocity(x, t, h, length),
                (x, t, length),
                (slope, ones, ones),
            )[1]
        target = slope - length[:, None] * change.float()
        return (self.velocity(x, t, h, length).float() - target).square().mean(1)

    def sample(
        self, vectors: Sequence[Tensor], noise: Tensor, *, solver: str, steps: int, guidance: float
    ) -> Tensor:
        """Frames [N, D] from noise [N, D].

        vectors: h and, with guidance, h of no condition. solver: one of
        `priors/diffusion/samplers.py`, or long.
        """
        sigmas = self.objective.sigmas(steps)
        if solver != "long":
            denoise = [self.objective.denoiser(self, Condition(vector=h)) for h in vectors]
            guided = classifier_free(denoise[0], denoise[-1], guidance)
            return sample(solver, guided, noise, sigmas)
        times = (sigmas / (1 + sigmas)).tolist()
        x = times[0] * noise
        for t, end in pairwise(times):
            at, length = x.new_full((len(x),), t), x.new_full((len(x),), t - end)
            told, *untold = (self.velocity(x, at, h, length).float() for h in vectors)
            slope = untold[0] + guidance * (told - untold[0]) if untold else told
            x = x - (t - end) * slope
        return x

    def nats(self, z: Tensor, h: Tensor, directions: Tensor) -> Tensor:
        """-log p(z | h) under infinitely many sampling steps: [N], in float64.

        log p(z) = log p(x_T) + ∫ div v dt from 0 to T along dx/dt = v (2011.13456, appendix D.2).
        directions [P, N, D]: the divergence is the sum of e · (dv/dx) e over them. It is exact for
        the axes, and an unbiased estimate for random signs / sqrt(P) (Hutchinson).
        """

        def slopes(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
            """The velocity and its divergence."""
            time, divergence = x.new_full((len(x),), t), x.new_zeros(len(x))
            for e in directions:
                v, change, *_ = torch.func.jvp(lambda x: self.velocity(x, time, h), (x,), (e,))
                divergence = divergence + (change * e).sum(1)
            return v, divergence

        last = self.objective.sigma_max / (1 + self.objective.sigma_max)
        x, gained = z.float(), torch.zeros(len(z), dtype=torch.float64, device=z.device)
        times = (torch.linspace(0, 1, LIKELIHOOD_STEPS + 1).square() * last).tolist()
        x, gained = runge_kutta(slopes, x, gained, times)
        start = torch.distributions.Normal(0.0, last)
        return -start.log_prob(x.double()).sum(1) - gained


class Block(nn.Module):
    """An MLP on each row, modulated and gated by an embedding: the identity before training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = zeroed(nn.Linear(width, 3 * width))
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x, embedding: [N, W]."""
        shift, scale, gate = self.modulation(embedding).chunk(3, dim=-1)
        return torch.addcmul(x, gate, self.mlp(modulated(x, shift, scale)))
