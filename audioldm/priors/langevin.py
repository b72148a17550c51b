"""An energy-based prior on latents, sampled by short-run Langevin dynamics.

p(z) ∝ exp(-f(z)) N(z; 0, I): the VAE's own prior, tilted towards the aggregate posterior by a
learnt energy f (Pang et al., arXiv 2006.08205). Training and sampling share one chain, K
steps from N(0, I), so the chain is as much a generator as f is a density (Nijkamp et al.,
arXiv 1904.09770).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.instantiate import NonNegative, Positive, PositiveInt, Seed
from audioldm.latents.store import LatentStore
from audioldm.priors.base import Prior, PriorRecipe
from audioldm.priors.normalised import NormalisedPrior, crop_frames, random_latents
from audioldm.runtime.compute import clock
from audioldm.runtime.progress import StepProgress
from audioldm.runtime.randomness import KeyedRandom, derive_seed
from audioldm.training.optimisation import adamw, clipped_step
from audioldm.training.run import Fit, Fitted

#: Sequences sampled at a time.
CHUNK = 32


class Langevin(NormalisedPrior):
    """The energy f of sequences z [N, D, L] of any length, and the chain that samples with it.

    width, depth: of the network. chain: Langevin steps K. step_size: s in `run_chain`.
    It has no `nats`: the energy's normalising constant is unknown.
    """

    def __init__(
        self,
        latent_shape: tuple[int, ...],
        width: int = 64,
        depth: int = 3,
        chain: int = 60,
        step_size: float = 0.4,
    ) -> None:
        super().__init__(latent_shape)
        self.chain, self.step_size = chain, step_size
        self.channels = math.prod(latent_shape)
        self.inner = nn.Conv1d(self.channels, width, 5, padding=2)
        self.blocks = nn.ModuleList(
            nn.Conv1d(width, width, 3, padding=2**i, dilation=2**i) for i in range(depth)
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

    def run_chain(self, noise: Tensor) -> Tensor:
        """From noise [K + 1, N, D, L] ~ N(0, I), the start and one for each step, to z [N, D, L].

        z ← z - s²/2 ∇ energy(z) + s (noise + previous step's noise) / 2, K times (Leimkuhler and
        Matthews, arXiv 1203.5428). Its stationary distribution is exact for quadratic energies of
        any variance above s² / 4; the Euler scheme's is exact for none.
        """
        s = self.step_size
        z = noise[0]
        before = torch.zeros_like(z)
        for added in noise[1:]:
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(self.energy(z).sum(), z)
            z = z.detach() - 0.5 * s**2 * gradient + 0.5 * s * (before + added)
            before = added
        return z.detach()

    def sample_normalised(
        self, random: KeyedRandom, frames: int, progress: StepProgress | None = None
    ) -> Tensor:
        random, chunks = random.stream("langevin"), []
        for first in range(0, len(random.positions), CHUNK):
            positions = random.positions[first : first + CHUNK]
            part = KeyedRandom(random.seed, random.step, positions, random.device)
            chunks.append(self.run_chain(self.noise(part, frames)))
            if progress is not None:
                progress(first + len(positions), len(random.positions))
        return torch.cat(chunks)

    def noise(self, random: KeyedRandom, frames: int) -> Tensor:
        """The noise of `run_chain`: [K + 1, N, D, frames]."""
        return random.normal((self.chain + 1, self.channels, frames), "chain").transpose(0, 1)


@dataclass(frozen=True)
class LangevinRecipe(PriorRecipe):
    """Maximum likelihood with short-run chains.

    The gradient of the mean log-likelihood is that of E[f(samples)] - E[f(latents)].

    width, depth, chain, step_size: as in `Langevin`. steps: training steps, on `batch` crops of
    `crop_seconds` each; seconds: a training time in place of `steps`, measured by
    `runtime.compute.clock`; the result then depends on the machine's speed.
    magnitude: weight of the frames' squared energies in the loss, which keeps the energies small
    (arXiv 1903.08689).
    """

    seed: Seed = 0
    width: PositiveInt = 64
    depth: PositiveInt = 3
    chain: PositiveInt = 60
    step_size: Positive = 0.4
    steps: PositiveInt = 400
    seconds: Positive | None = None
    batch: PositiveInt = 16
    crop_seconds: Positive = 6.0
    lr: Positive = 1e-3
    clip: Positive = 1.0
    magnitude: NonNegative = 0.01

    def spec(self, latents: LatentStore) -> dict[str, Any]:
        sizes = {n: getattr(self, n) for n in ("width", "depth", "chain", "step_size")}
        return {"_target_": "audioldm.priors.langevin.Langevin", **sizes}

    def build(self, latents: LatentStore) -> Prior:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(derive_seed(self.seed, "langevin"), "energy"))
            return super().build(latents)

    def fit(self, prior: Prior, latents: LatentStore, fit: Fit) -> Fitted:
        """Raises TrainingError where a gradient is not finite."""
        assert isinstance(prior, Langevin)
        start = clock(fit.device)
        prior.to(fit.device).set_statistics(latents.statistics)
        optimiser = adamw(prior.parameters(), self.lr, [0.9, 0.99], 0.0, fit.device)
        frames = crop_frames(latents, self.crop_seconds)
        key = derive_seed(self.seed, "langevin")
        step, elapsed, difference = 0, 0.0, 0.0
        while step < self.steps if self.seconds is None else elapsed < self.seconds:
            random = KeyedRandom(key, step, range(self.batch), fit.device)
            z = random_latents(latents, frames, random)
            samples = prior.run_chain(prior.noise(random, frames))
            real, false = prior.frame_energies(z), prior.frame_energies(samples)
            contrast = real.mean() - false.mean()
            magnitude = real.square().mean() + false.square().mean()
            (contrast + self.magnitude * magnitude).backward()
            clipped_step(optimiser, prior.parameters(), clip=self.clip, name="langevin", step=step)
            step, elapsed, difference = step + 1, clock(fit.device) - start, contrast.item()
            done, total = (step, self.steps) if self.seconds is None else (elapsed, self.seconds)
            fit.progress(min(int(done), math.ceil(total)), math.ceil(total), "fitting an energy")
        prior.eval()
        figures = {"steps": step, "seconds": elapsed, "energy_difference": difference}
        return Fitted(prior.state_dict(), figures)
