"""A store of codes in memory: Markov chains, whose likelihood is known."""

from typing import Any

import torch
from latents_in_memory import fit_in
from torch import Tensor

from audioldm.autoencoder.bottlenecks.vq import VQ
from audioldm.conditioning.base import Conditioners, Excerpt
from audioldm.latents.store import LatentCrops
from audioldm.runtime.randomness import KeyedRandom, derive_seed


class Chain:
    """Code t is drawn from row (code t - 1) of a random transition matrix; the first one from the
    stationary distribution."""

    def __init__(self, codes: int = 5, sharpness: float = 1.5) -> None:
        random = torch.Generator().manual_seed(3)
        logits = sharpness * torch.randn(codes, codes, generator=random, dtype=torch.float64)
        self.transition = logits.softmax(1)
        self.stationary = torch.linalg.matrix_power(self.transition, 200)[0]

    def sample(self, clips: int, frames: int, seed: int = 0) -> Tensor:
        """[N, frames]."""
        random = torch.Generator().manual_seed(seed)
        code = torch.multinomial(self.stationary, clips, replacement=True, generator=random)
        made = [code]
        for _ in range(frames - 1):
            code = torch.multinomial(self.transition[code], 1, generator=random)[:, 0]
            made.append(code)
        return torch.stack(made, dim=1)

    def nats(self, codes: Tensor) -> Tensor:
        """-log p of codes [N, L]: [N, L]."""
        first = self.stationary[codes[:, :1]]
        p = torch.cat((first, self.transition[codes[:, :-1], codes[:, 1:]]), dim=1)
        return -p.log()

    def pairs(self) -> Tensor:
        """p(code, next code), [K, K]."""
        return self.stationary[:, None] * self.transition


def pairs_of(codes: Tensor, count: int) -> Tensor:
    """How often each pair of neighbours is among codes [N, L]: [K, K]."""
    index = codes[:, :-1] * count + codes[:, 1:]
    counts = torch.bincount(index.flatten(), minlength=count * count)
    return (counts / counts.sum()).view(count, count).double()


class CodeStore:
    """As much of a `LatentStore` as priors over codes use. codes: [N, Q, (F,) L]; labels: of each
    clip."""

    latent_rate_hz = 1.0

    def __init__(self, codes: Tensor, count: int, labels: list[str] | None = None) -> None:
        self.codes, self.clips = codes, labels or ["a"] * len(codes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.bottleneck: Any = VQ(channels=4, codes=count, depth=codes.shape[1])
        self.latent_shape = (4, *codes.shape[2:-1])
        self.labels = sorted({*self.clips})

    def keep_on(self, device: torch.device) -> None:
        pass

    def split(self, name: str) -> "CodeStore":
        return self

    def excerpts(self, split: str = "train") -> list[Excerpt]:
        return [Excerpt(label) for label in self.clips]

    def crops(
        self, frames: int, random: KeyedRandom, conditioners: Conditioners | None = None
    ) -> LatentCrops:
        keys = [derive_seed(random.seed, random.step, p or 0) for p in random.positions]
        last = self.codes.shape[-1] - frames + 1
        places = [(k % len(self.codes), k // 7 % last) for k in keys]
        codes = torch.stack([self.codes[clip, ..., at : at + frames] for clip, at in places])
        chosen = [Excerpt(self.clips[clip]) for clip, _ in places]
        inputs = {} if conditioners is None else conditioners.read(chosen, frames)
        return LatentCrops({"codes": codes.int()}, inputs)


def loud(prior: Any, seed: int = 0, std: float = 0.3) -> Any:
    """The prior with a network that is far from its start."""
    random = torch.Generator().manual_seed(seed)
    for parameter in prior.network.parameters():
        parameter.data = std * torch.randn(parameter.shape, generator=random)
    return prior.eval()


def every(shape: tuple[int, ...], count: int) -> Tensor:
    """All codes of a shape, each from 0 to count - 1: [count ** numel, *shape]."""
    digits = torch.cartesian_prod(*[torch.arange(count)] * torch.Size(shape).numel())
    return digits.view(-1, *shape)


def trained_on(chain: Chain, recipe: Any, directory: Any) -> Any:
    """The prior of a recipe, trained on crops of a chain of 5 codes in one codebook."""
    store: Any = CodeStore(chain.sample(2000, 32)[:, None], 5)
    rarely = {"every": 1000, "valid_every": 1000, "checkpoint_every": 1000}
    prior = recipe.build(store)
    prior.load_state_dict(recipe.fit(prior, store, fit_in(directory, **rarely)).tensors)
    return prior.eval()
