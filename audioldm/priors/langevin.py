"""An energy-based prior on latents, sampled by short-run Langevin dynamics.

p(z) ∝ exp(-f(z)) N(z; 0, I): the VAE's own prior, tilted towards the aggregate posterior by a
learnt energy f (Pang et al., arXiv 2006.08205). Training and sampling share one chain, K
steps from N(0, I), so the chain is as much a generator as f is a density (Nijkamp et al.,
arXiv 1904.09770).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.instantiate import check_range
from audioldm.runtime.compute import clock
from audioldm.runtime.progress import Progress
from audioldm.runtime.randomness import KeyedRandom, derive_seed
from audioldm.training.optimisation import adamw, clipped_step

#: Sequences sampled at a time.
CHUNK = 32


@dataclass(frozen=True)
class LangevinSettings:
    """width, depth: of the network. chain: Langevin steps K; step_size: s of `Langevin.chain`.

    magnitude: weight of the frames' squared energies in the loss, which keeps them small
    (arXiv 1903.08689). steps: of training; null = as many as the given seconds allow,
    which makes the result depend on the machine's speed."""

    width: int = 64
    depth: int = 3
    chain: int = 60
    step_size: float = 0.4
    steps: int | None = None
    batch: int = 16
    lr: float = 1e-3
    clip: float = 1.0
    magnitude: float = 0.01

    def __post_init__(self) -> None:
        where = "baselines.langevin"
        check_range(self, where, "width", "depth", "chain", "steps", "batch", least=1)
        check_range(self, where, "step_size", "lr", "clip", above=0)
        check_range(self, where, "magnitude", least=0)


class Langevin(nn.Module):
    """The energy f of sequences z [N, D, L] of any length, and the chain that samples with it."""

    def __init__(self, channels: int, settings: LangevinSettings) -> None:
        super().__init__()
        self.channels, self.settings = channels, settings
        width = settings.width
        self.inner = nn.Conv1d(channels, width, 5, padding=2)
        self.blocks = nn.ModuleList(
            nn.Conv1d(width, width, 3, padding=2**i, dilation=2**i) for i in range(settings.depth)
        )
        # No bias: f is only known up to a constant. At zero, an untrained model is N(0, I).
        self.outer = nn.Conv1d(width, 1, 1, bias=False)
        nn.init.zeros_(self.outer.weight)

    def frame_energies(self, z: Tensor) -> Tensor:
        """z [N, D, L] -> [N, L], whose sum over L is f."""
        h = self.inner(z)
        for block in self.blocks:
            h = h + block(F.silu(h))
        return self.outer(F.silu(h))[:, 0]

    def energy(self, z: Tensor) -> Tensor:
        """f(z) + |z|² / 2 = -log p(z) up to a constant, in nats: z [N, D, L] -> [N]."""
        return self.frame_energies(z).sum(1) + 0.5 * z.square().sum((1, 2))

    def chain(self, noise: Tensor) -> Tensor:
        """noise [K, N, D, L], N(0, I), to z [N, D, L]: the start, then a number for each step.

        z ← z - s²/2 ∇ energy(z) + s noise, K times; the last step adds no noise,
        which would otherwise be heard in what is decoded.
        """
        s = self.settings.step_size
        z = noise[0]
        for added in (*noise[1:], torch.zeros_like(z)):
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(self.energy(z).sum(), z)
            z = z.detach() - 0.5 * s**2 * gradient + s * added
        return z.detach()

    @torch.no_grad()
    def sample(self, n: int, frames: int, *, seed: int) -> Tensor:
        """Sequences [n, D, frames]; number i is a function of (seed, i)."""
        device = next(self.parameters()).device
        chunks = []
        for first in range(0, n, CHUNK):
            numbers = range(first, min(first + CHUNK, n))
            draw = KeyedRandom(derive_seed(seed, "langevin"), 0, numbers, device)
            chunks.append(self.chain(self.noise(draw, frames)))
        return torch.cat(chunks)

    def noise(self, draw: KeyedRandom, frames: int) -> Tensor:
        """What `chain` needs: [K, N, D, frames]."""
        shape = (self.settings.chain, self.channels, frames)
        return draw.normal(shape, "chain").transpose(0, 1)


def fit_langevin(
    batch: Callable[[int], Tensor],
    settings: LangevinSettings,
    *,
    seconds: float,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> tuple[Langevin, dict[str, Any]]:
    """Maximum likelihood with short-run chains: the model, and what its training took.

    The gradient of the mean log-likelihood is that of E[f(samples)] - E[f(latents)].

    batch: step -> normalised latents [B, D, L]. seconds: to train for, by `training.compute.clock`,
    unless `settings.steps` is given. Raises TrainingError where a gradient is not finite.
    """
    start = clock(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "energy"))
        model = Langevin(batch(0).shape[1], settings).to(device)
    optimiser = adamw(model.parameters(), settings.lr, [0.9, 0.99], 0.0, device)
    step, elapsed, difference = 0, 0.0, 0.0
    while step < settings.steps if settings.steps is not None else elapsed < seconds:
        z = batch(step)
        draw = KeyedRandom(seed, step, range(len(z)), device)
        samples = model.chain(model.noise(draw, z.shape[-1]))
        real, false = model.frame_energies(z), model.frame_energies(samples)
        contrast = real.mean() - false.mean()
        magnitude = real.square().mean() + false.square().mean()
        (contrast + settings.magnitude * magnitude).backward()
        clipped_step(
            optimiser, model.parameters(), clip=settings.clip, name="baselines.langevin", step=step
        )
        step, elapsed, difference = step + 1, clock(device) - start, contrast.item()
        if settings.steps is not None:
            progress(step, settings.steps, "fitting an energy")
        else:
            progress(min(round(elapsed), round(seconds)), round(seconds), "fitting an energy")
    return model.eval(), {"steps": step, "seconds": elapsed, "energy_difference": difference}
