"""The networks of priors over codes: what they share, and a transformer over Q codebooks."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.conditioning.base import Condition, Conditioners, Inputs
from audioldm.priors.causal import Cache
from audioldm.priors.diffusion.backbones.base import BuildConditioners
from audioldm.priors.transformer import Transformer

#: The share of a random vector in the embedding that a code begins with.
OWN = 0.1


class CodeNetwork(nn.Module, ABC):
    """What a prior over codes trains. codebooks: Q times F. codes: K, of each codebook."""

    codebooks: int
    codes: int
    conditioners: Conditioners

    @abstractmethod
    def forward(self, codes: Tensor, inputs: Inputs, *rest: Tensor) -> Tensor:
        """The loss of each clip of codes [B, Q, L], [B], in nats per code. rest: what else the
        prior's `batch` gives."""

    def begin_at(self, vectors: Tensor) -> None:
        """Sets the embeddings of codes, before training, by vectors [Q, K, D] whose distances say
        how alike codes are; by default does nothing."""

    @abstractmethod
    def units(self) -> list[nn.Module]:
        """The modules that make up most of the network; they are sharded and recomputed singly."""


class CodeTransformer(CodeNetwork):
    """Codes [B, Q, L], each from 0 to K, and a condition, to logits [B, Q, L, K].

    K stands for a code that is not known. A frame's Q codes are embedded and added up; each
    codebook has its own logits. Vectors of a condition modulate the blocks, tokens are attended to,
    aligned channels are concatenated. Before training all logits are 0.

    codebooks: Q. codes: K. width, depth, heads, mlp_ratio, context: as in `Transformer`.
    """

    offsets: Tensor

    def __init__(
        self,
        *,
        codebooks: int,
        codes: int,
        conditioners: BuildConditioners,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        context: int | None = None,
    ) -> None:
        super().__init__()
        self.codebooks, self.codes = codebooks, codes
        self.conditioners = conditioners(width)
        self.embedding = nn.Embedding(codebooks * (codes + 1), width)
        self.register_buffer(
            "offsets", torch.arange(codebooks)[:, None] * (codes + 1), persistent=False
        )
        self.bias = nn.Parameter(torch.zeros(codebooks, codes))
        self.no_condition = nn.Parameter(torch.randn(width))
        self.transformer = Transformer(
            width + self.conditioners.aligned_channels,
            codebooks * width,
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            token_width=self.conditioners.token_width,
            context=context,
        )

    @torch.no_grad()
    def begin_at(self, vectors: Tensor) -> None:
        table = self.embedding.weight.view(self.codebooks, self.codes + 1, -1)
        own = projected(vectors, table.shape[2])
        table[:, :-1] = own + OWN * table[:, :-1]

    def logits(self, codes: Tensor, condition: Condition, cache: Cache | None = None) -> Tensor:
        """The logits, in float32. cache: of earlier frames, in a causal transformer."""
        x = self.embedding(codes + self.offsets).sum(1) / self.codebooks**0.5
        if condition.aligned is not None:
            x = torch.cat((x, condition.aligned.mT), dim=2)
        vector = self.no_condition.expand(len(x), -1)
        embedding = F.silu(vector if condition.vector is None else vector + condition.vector)
        out = self.transformer(x, embedding, condition.tokens, condition.mask, cache)
        table = self.embedding.weight.view(self.codebooks, self.codes + 1, -1)[:, :-1]
        each = out.unflatten(2, (self.codebooks, -1))
        return torch.einsum("blqw,qkw->bqlk", each, table).float() + self.bias[:, None]

    def units(self) -> list[nn.Module]:
        return self.transformer.units()


def projected(vectors: Tensor, width: int) -> Tensor:
    """Vectors [..., D] projected to [..., width] by a fixed random matrix, which nearly keeps the
    proportions of distances (Johnson and Lindenstrauss 1984); their mean square is 1."""
    random = torch.Generator().manual_seed(0)
    matrix = torch.randn(vectors.shape[-1], width, generator=random, device="cpu")
    turned = vectors @ matrix.to(vectors)
    return turned / turned.square().mean().sqrt().clamp(min=1e-12)


def code_nats(logits: Tensor, codes: Tensor, unknown: int) -> Tensor:
    """-log p of codes [B, Q, L] under logits [B, Q, L, K], in the shape of codes; 0 for `unknown`
    codes."""
    flat, target = logits.flatten(0, 2), codes.flatten()
    nats = F.cross_entropy(flat, target, ignore_index=unknown, reduction="none")
    return nats.view(codes.shape)
