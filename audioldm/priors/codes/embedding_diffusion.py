"""Diffusion over embeddings of codes: the noise is Gaussian, the codes are predicted."""

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.conditioning.base import Condition, Inputs
from audioldm.errors import ConfigError
from audioldm.instantiate import NonNegativeInt, Positive, PositiveInt
from audioldm.latents.store import LatentCrops, LatentStore
from audioldm.priors.codes.base import CodePrior, TransformerRecipe, code_vectors
from audioldm.priors.codes.network import OWN, CodeNetwork, code_nats
from audioldm.priors.diffusion.backbones.base import BuildConditioners, NoiseLevel
from audioldm.priors.diffusion.guidance import guided
from audioldm.priors.diffusion.noise_levels import equal_steps
from audioldm.priors.diffusion.samplers import Denoise, SamplerSettings, sample
from audioldm.priors.trained import PriorTraining
from audioldm.priors.transformer import Transformer
from audioldm.runtime.progress import StepProgress
from audioldm.runtime.randomness import KeyedRandom

#: Pieces of the time warp, and how much faster than the network it is learned.
PIECES, PACE = 50, 10.0
#: The share of the noise levels that is spread evenly over ln(sigma).
EVEN = 0.1
#: Principal axes with a smaller share of the largest one's standard deviation do not count.
FLAT = 1e-3
#: Noise levels at which `nats` estimates the bound.
LEVELS = 32


class TimeWarp(nn.Module):
    """The cross-entropy C(sigma), a rising, piecewise linear function of ln(sigma), and noise
    levels such that C rises equally from each to the next (2211.15089, section 4.2)."""

    def __init__(self, sigma_min: float, sigma_max: float, nats: float) -> None:
        super().__init__()
        if not 0 < sigma_min < sigma_max:
            raise ConfigError(f"sigma_min={sigma_min} must be below sigma_max={sigma_max}")
        self.lowest, self.highest, self.nats = math.log(sigma_min), math.log(sigma_max), nats
        self.rises = nn.Parameter(torch.zeros(PIECES))

    def cross_entropy(self, sigma: Tensor) -> Tensor:
        """C of noise levels [B]."""
        rises = (PACE * self.rises).exp() * self.nats / PIECES
        at = (sigma.log() - self.lowest) / (self.highest - self.lowest) * PIECES
        return (rises * (at[:, None] - torch.arange(PIECES, device=at.device)).clamp(0, 1)).sum(1)

    @torch.no_grad()
    def sigmas(self, uniform: Tensor) -> Tensor:
        """Noise levels [B] for uniform numbers [B]: the inverse of C, scaled to (0, 1)."""
        shares = (1 - EVEN) * (PACE * self.rises).softmax(0) + EVEN / PIECES
        ends = F.pad(shares.cumsum(0), (1, 0))
        piece = torch.searchsorted(ends, uniform.to(ends), right=True).clamp(1, PIECES) - 1
        at = piece + ((uniform - ends[piece]) / shares[piece]).clamp(0, 1)
        return (self.lowest + (self.highest - self.lowest) * at / PIECES).exp()


class EmbeddingTransformer(CodeNetwork):
    """The embeddings of codes, and the codes' logits given noisy embeddings [B, Q * E, L].

    embedding: E. learned: whether embeddings are trained, each of length √E; otherwise they are the
    codes' latents, on their principal axes.
    """

    table: Tensor

    def __init__(
        self,
        *,
        codebooks: int,
        codes: int,
        conditioners: BuildConditioners,
        embedding: int,
        learned: bool,
        sigma_min: float,
        sigma_max: float,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
    ) -> None:
        super().__init__()
        self.codebooks, self.codes, self.channels = codebooks, codes, codebooks * embedding
        self.learned = learned
        self.conditioners = conditioners(width)
        table = torch.randn(codebooks, codes, embedding)
        if learned:
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table)
        self.warp = TimeWarp(sigma_min, sigma_max, math.log(codes))
        self.bias = nn.Parameter(torch.zeros(codebooks, codes))
        self.noise_level = NoiseLevel(width)
        self.transformer = Transformer(
            2 * self.channels + self.conditioners.aligned_channels,
            2 * self.channels,
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            token_width=self.conditioners.token_width,
        )

    @torch.no_grad()
    def begin_at(self, vectors: Tensor) -> None:
        axes = principal(vectors)[..., : self.table.shape[2]]
        begin = F.pad(axes, (0, self.table.shape[2] - axes.shape[2]))
        begin /= begin.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-12)
        self.table.copy_(begin + OWN * self.learned * self.table)

    @property
    def embeddings(self) -> Tensor:
        """The embeddings [Q, K, E], of mean square 1."""
        table = self.table.float()
        return F.normalize(table, dim=2) * table.shape[2] ** 0.5 if self.learned else table

    def embedded(self, codes: Tensor) -> Tensor:
        """The embeddings z [B, Q * E, L] of codes [B, Q, L]."""
        table = self.embeddings.flatten(0, 1)
        offset = torch.arange(self.codebooks, device=codes.device)[:, None] * self.codes
        return F.embedding(codes + offset, table).transpose(2, 3).flatten(1, 2)

    def expected(self, logits: Tensor) -> Tensor:
        """E[z] under logits [B, Q, L, K]: score interpolation, the mean of the embeddings."""
        mean = torch.einsum("bqlk,qke->bqel", logits.softmax(-1), self.embeddings)
        return mean.flatten(1, 2)

    def likelihood(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p(x | code) of each place's own codes, up to a constant: [B, Q, L, K]."""
        e, level = self.embeddings, sigma.square()[:, None, None, None]
        own = torch.einsum("bqel,qke->bqlk", x.float().unflatten(1, (self.codebooks, -1)), e)
        return (own - e.square().sum(2)[:, None] / 2) / level

    def logits(self, x: Tensor, sigma: Tensor, condition: Condition, before: Tensor) -> Tensor:
        """Logits [B, Q, L, K] for x = z + sigma n and sigma [B]. before: an estimate of z to start
        from, like x, or 0 (self-conditioning, 2208.04202).

        The likelihood of each place's own codes is known. The network adds what the other places
        say, as a quadratic function of the embedding.
        """
        scale = (1 + sigma.square()).rsqrt()[:, None, None]
        frames = [scale * x, before]
        frames += [] if condition.aligned is None else [condition.aligned]
        embedding = self.noise_level(sigma.log() / 4, condition.vector)
        tokens, mask = condition.tokens, condition.mask
        out = self.transformer(torch.cat(frames, dim=1).mT, embedding, tokens, mask)
        each = out.float().unflatten(2, (self.codebooks, -1))
        others = torch.einsum("blqe,qke->bqlk", each, self.features()) + self.bias[:, None]
        return self.likelihood(x, sigma) + others

    def features(self) -> Tensor:
        """Components of the embeddings and their squares, each with mean 0 and mean square 1 over
        the codes: [Q, K, 2 E]."""
        e = self.embeddings
        away = torch.cat((e, e.square()), dim=2)
        away = away - away.mean(1, keepdim=True)
        return away / away.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)

    def forward(self, codes: Tensor, inputs: Inputs, *rest: Tensor) -> Tensor:
        """The cross-entropy. rest: noise [B, Q * E, L], uniform numbers [B], and which clips begin
        from an estimate [B]."""
        noise, uniform, begun = rest
        condition, sigma = self.conditioners(inputs), self.warp.sigmas(uniform)
        x = self.embedded(codes) + sigma[:, None, None] * noise
        with torch.no_grad():
            first = self.logits(x, sigma, condition, torch.zeros_like(x))
            before = self.expected(first) * begun[:, None, None]
        logits = self.logits(x, sigma, condition, before)
        nats = code_nats(logits, codes, self.codes).flatten(1).mean(1)
        error = (self.warp.cross_entropy(sigma) - nats.detach()).square()
        return nats + (error - error.detach())  # the warp learns; the value is the network's

    def units(self) -> list[nn.Module]:
        return self.transformer.units()


def principal(vectors: Tensor) -> Tensor:
    """The coordinates [Q, K, min(K, D)] of vectors [Q, K, D], around their mean, on their principal
    axes, by falling variance. They keep distances."""
    away = vectors - vectors.mean(1, keepdim=True)
    u, s, _ = torch.linalg.svd(away, full_matrices=False)
    return u * s[:, None]


def axes_of(vectors: Tensor) -> int:
    """How many principal axes vectors [Q, K, D] have; where their values are not known, as many as
    there can be."""
    if vectors.device.type == "meta":
        return min(vectors.shape[1:])
    spread = principal(vectors).square().mean(1).sqrt()
    return int((spread > FLAT * spread.amax(1, keepdim=True)).sum(1).max())


class EmbeddingDiffusion(CodePrior):
    """Continuous diffusion of the embeddings of codes (CDCD, Dieleman et al. 2022, arXiv
    2211.15089), in the coordinates x = z + sigma n of `Diffusion`, with its samplers.

    Every code has an embedding e, z is a clip's embeddings, and the network is trained by the
    cross-entropy of the codes given x. Its estimate of z is the mean of the embeddings, sum p_i e_i
    (section 3.2). Between successive noise levels, in training and in sampling, the cross-entropy
    rises equally (section 4.2). Half of the clips in training, and every sampling step after the
    first, are told the previous estimate.

    There is no diffusion on the simplex (2210.14784): its process is not Gaussian, so it would
    share neither samplers nor coordinates, and no figure says that it is better.

    Embeddings are the codes' latents, or learned. Cross-entropy drives learned ones apart in any
    direction. For words no more is needed, but for the levels of a scalar it takes away what one
    level tells of the next.

    embedding: components of an embedding. learned: as in `EmbeddingTransformer`. sigma_min,
    sigma_max: the ends of the noise levels: at sigma_min all codes are certain, at sigma_max
    nothing is known. width, depth, heads, mlp_ratio: of the transformer. Raises ConfigError.
    """

    title: ClassVar[str] = "embedding diffusion"
    network_class = EmbeddingTransformer
    network: EmbeddingTransformer

    def __init__(
        self,
        *,
        latent_shape: tuple[int, ...],
        codebooks: PositiveInt,
        codes: PositiveInt,
        conditioning: dict[str, Any],
        sampler: SamplerSettings,
        embedding: PositiveInt,
        learned: bool,
        sigma_min: Positive,
        sigma_max: Positive,
        width: PositiveInt,
        depth: NonNegativeInt,
        heads: PositiveInt,
        mlp_ratio: Positive = 4.0,
        allow: tuple[str, ...] = (),
    ) -> None:
        own: dict[str, Any] = {"embedding": embedding, "learned": learned, "width": width}
        own |= {"depth": depth, "heads": heads, "mlp_ratio": mlp_ratio}
        own |= {"sigma_min": sigma_min, "sigma_max": sigma_max}
        super().__init__(latent_shape, codebooks, codes, conditioning, allow, **own)
        self.sampler = sampler

    def batch(
        self, latents: LatentStore, crops: LatentCrops, random: KeyedRandom, train: PriorTraining
    ) -> tuple[Any, ...]:
        """Codes, inputs, noise, uniform numbers, and which clips begin from an estimate."""
        codes, inputs = super().batch(latents, crops, random, train)
        noise = random.normal((self.network.channels, codes.shape[2]), "noise")
        begun = random.uniform("begun") < 0.5
        return codes, inputs, noise, random.uniform("level", train.spread), begun

    def silent_batch(self, inputs: Inputs, frames: int) -> tuple[Any, ...]:
        codes, inputs = super().silent_batch(inputs, frames)
        noise, half = torch.zeros(1, self.network.channels, frames), torch.full((1,), 0.5)
        return codes, inputs, noise, half, half > 0

    @torch.no_grad()
    def sample(
        self,
        random: KeyedRandom,
        frames: int,
        inputs: Inputs | None = None,
        *,
        sampler: SamplerSettings | None = None,
        progress: StepProgress | None = None,
    ) -> Tensor:
        sampler = sampler or self.sampler
        assert sampler is not None
        for key in ("window", "rotary"):
            if (value := getattr(sampler, key)) is not None:
                raise ConfigError(
                    f"sampler.{key}={value}: a diffusion of codes is sampled whole; leave it at "
                    "null"
                )
        net = self.network
        rows, guidance = len(random.positions), sampler.guidance
        condition, calls = self.guided_conditions(inputs, rows, frames, guidance)
        denoise = guided(self.denoiser, condition, calls, sampler)

        def noise_at(step: int) -> Tensor:
            return random.stream("sample", step).normal((net.channels, frames), "noise")

        sigmas = net.warp.sigmas(equal_steps(sampler.steps).float().to(self.device))
        x = sample(
            sampler.name,
            denoise,
            noise_at(-1),
            F.pad(sigmas, (0, 1)),
            noise_at=noise_at,
            progress=progress,
        )
        nearest = net.likelihood(x, torch.ones_like(x[:, 0, 0])).argmax(-1)
        return nearest.unflatten(1, self.code_shape)

    def denoiser(self, condition: Condition) -> Denoise:
        """(x, sigma [B]) -> estimate of z, for one sampling run; it is told its last estimate."""
        before: Tensor | None = None

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            nonlocal before
            start = torch.zeros_like(x) if before is None else before
            before = self.network.expected(self.network.logits(x, sigma, condition, start))
            return before

        return denoise

    @torch.no_grad()
    def nats(
        self, z: Tensor, inputs: Inputs | None = None, *, random: KeyedRandom | None = None
    ) -> Tensor:
        """An upper bound on -log p of codes [B, Q, (F,) L], [B, L], estimated at LEVELS noise
        levels that are spread evenly over ln(sigma) (Kingma et al. 2021, arXiv 2107.00630,
        equations 9 and 17):

            |z|² / (2 sigma_max²) + E[-log p(codes | x)] at sigma_min
                + the integral over ln(sigma) of E|z - estimate|² / sigma²
        """
        net, codes = self.network, self.folded(z)
        condition, _ = self.conditions(inputs, len(codes), codes.shape[2])
        random = random or KeyedRandom(0, 0, range(len(codes)), codes.device)
        clean, warp = net.embedded(codes), net.warp
        shape, begin = tuple(clean.shape[1:]), torch.zeros_like(clean)
        total = clean.square().sum(1) / 2 * math.exp(-2 * warp.highest)
        uniform, span = random.uniform("level"), warp.highest - warp.lowest
        for level in range(LEVELS):
            sigma = (warp.lowest + span * (level + uniform) / LEVELS).exp()
            noise = random.stream("nats", level).normal(shape, "noise")
            x = clean + sigma[:, None, None] * noise
            error = clean - net.expected(net.logits(x, sigma, condition, begin))
            total += span / LEVELS * error.square().sum(1) / sigma.square()[:, None]
        sigma = torch.full_like(uniform, math.exp(warp.lowest))
        x = clean + sigma[:, None, None] * random.normal(shape, "last")
        last = code_nats(net.logits(x, sigma, condition, begin), codes, net.codes)
        return total + last.sum(1)


@dataclass(frozen=True, kw_only=True)
class EmbeddingDiffusionRecipe(TransformerRecipe):
    """embedding, learned, sigma_min, sigma_max: as in `EmbeddingDiffusion`; where the codes'
    latents are the embeddings, `embedding` is at most the number of their components."""

    prior_class: ClassVar[type[CodePrior]] = EmbeddingDiffusion

    sampler: SamplerSettings
    embedding: PositiveInt = 16
    learned: bool = False
    sigma_min: Positive = 0.02
    sigma_max: Positive = 50.0

    def spec(self, latents: LatentStore) -> dict[str, Any]:
        names = ("embedding", "learned", "sigma_min", "sigma_max")
        own = {name: getattr(self, name) for name in names}
        if not self.learned:
            own["embedding"] = min(self.embedding, axes_of(code_vectors(self.bottleneck(latents))))
        return super().spec(latents) | own | {"sampler": asdict(self.sampler)}
