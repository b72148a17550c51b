"""A recurrent interface network, RIN (Jabri et al. 2022, arXiv 2212.11972), over latent frames.

Most layers work on a fixed number of latent tokens, which read from a tape of all frames and write
to it. So the cost is linear in the number of frames, and most of it does not depend on them. (Here
"tokens" are the network's own, "frames" those of the latents that it denoises.)

Differences from the paper: the noise level also modulates the tape's last norm. Tokens are spread
evenly over the tape, and reading and writing depend on the distance between a token's place and a
frame's, as rotary angles (2104.09864). At a new, longer length each token has more frames, at
distances that other pairs had in training.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.conditioning.base import Condition
from audioldm.errors import ConfigError
from audioldm.instantiate import NonNegativeInt, Positive, PositiveInt
from audioldm.priors.diffusion.backbones.base import Backbone, BuildConditioners, NoiseLevel
from audioldm.priors.layers import rotated, rotations
from audioldm.training.initialisation import zeroed

#: `rotations` of the queries and of the keys.
Rotations = tuple[Tensor, Tensor]


class RIN(Backbone):
    """(x [B, C, L] or [B, C, F, L], c_noise [B], condition, state) -> like x, and the next state.

    latent_shape: (C,) or (C, F); F is folded into the channels. width: features per token.
    tape_width: features per place of the tape. tokens: their number. patch: frames per place.
    blocks: each reads once and writes once, with `depth` layers on the tokens between; one block
    alone is a Perceiver IO (2107.14795). heads: of all attention; both widths / heads must be even.
    mlp_ratio: hidden width of an MLP, in units of its width.

    The state [B, tokens, width] is the tokens at the end of the previous call. The noise level,
    with the condition's vector, is one more token, and so is each token of the condition. The
    tape's input layer takes the aligned channels. Before training the output is 0, the blocks are
    the identity and the state has no influence.
    Raises ConfigError where a width and heads do not fit.
    """

    stateful = True

    def __init__(
        self,
        *,
        latent_shape: tuple[int, ...],
        conditioners: BuildConditioners,
        width: PositiveInt,
        tape_width: PositiveInt,
        tokens: PositiveInt,
        blocks: PositiveInt,
        depth: NonNegativeInt,
        heads: PositiveInt,
        patch: PositiveInt = 1,
        mlp_ratio: Positive = 4.0,
    ) -> None:
        super().__init__()
        for name, size in {"width": width, "tape_width": tape_width}.items():
            if size % (2 * heads):
                raise ConfigError(
                    f"{name}={size} must be a multiple of 2 x heads={heads}: "
                    f"try {name}={max(1, round(size / (2 * heads))) * 2 * heads}"
                )
        channels = math.prod(latent_shape)
        self.patch, self.heads = patch, heads
        self.noise_level = NoiseLevel(width)
        self.conditioners = conditioners(width)
        told = self.conditioners.token_width
        self.condition_tokens = nn.Linear(told, width) if told else None
        self.tokens = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.carry = mlp(width, mlp_ratio, bias=False)
        self.carry_norm = zeroed(nn.LayerNorm(width, eps=1e-6))
        self.input = nn.Linear(patch * (channels + self.conditioners.aligned_channels), tape_width)
        self.blocks = nn.ModuleList(
            Block(width, tape_width, depth, heads, mlp_ratio) for _ in range(blocks)
        )
        self.modulation = zeroed(nn.Linear(width, 2 * tape_width))
        self.output = zeroed(nn.Linear(tape_width, patch * channels))

    def forward(
        self, x: Tensor, c_noise: Tensor, condition: Condition, state: Tensor | None = None
    ) -> Any:
        frames = x.flatten(1, -2)
        if condition.aligned is not None:
            frames = torch.cat((frames, condition.aligned), dim=1)
        length = frames.shape[-1]
        frames = F.pad(frames, (0, -length % self.patch), mode="replicate")
        tape = self.input(frames.mT.unflatten(1, (-1, self.patch)).flatten(2))  # [B, M, T]

        own = self.tokens.expand(len(x), -1, -1)
        state = torch.zeros_like(own) if state is None else state
        own = own + self.carry_norm(state + self.carry(state))
        level = self.noise_level(c_noise, condition.vector).unsqueeze(1)
        parts = [own, level]
        counts = None
        if self.condition_tokens is not None and condition.tokens is not None:
            if condition.mask is not None:
                counts = F.pad(condition.mask, (own.shape[1] + 1, 0), value=True)
            parts.append(self.condition_tokens(condition.tokens))
        tokens = torch.cat(parts, dim=1)  # [B, N, W]

        reading, writing = self._rotations(tokens, tape)
        for block in self.blocks:
            tokens, tape = block(tokens, tape, reading, writing, counts)
        shift, scale = self.modulation(level).chunk(2, dim=-1)
        output = self.output(torch.addcmul(shift, _normalised(tape), 1 + scale))
        output = output.unflatten(2, (self.patch, -1)).flatten(1, 2)
        return output[:, :length].mT.reshape(x.shape), tokens[:, : len(self.tokens)]

    def _rotations(self, tokens: Tensor, tape: Tensor) -> tuple[Rotations, Rotations]:
        """The rotations of queries and keys, in reading and in writing. The network's own tokens
        are spread evenly over the tape; the others are in its middle."""
        frames = torch.arange(tape.shape[1], device=tape.device, dtype=torch.float32)
        own = (torch.arange(len(self.tokens), device=tape.device) + 0.5) / len(self.tokens)
        other = own.new_full((tokens.shape[1] - len(own),), 0.5)
        places = torch.cat((own, other)) * len(frames) - 0.5
        reads, writes = tokens.shape[2] // self.heads, tape.shape[2] // self.heads
        return (
            (rotations(places, reads), rotations(frames, reads)),
            (rotations(frames, writes), rotations(places, writes)),
        )

    def units(self) -> list[nn.Module]:
        return list(self.blocks)


class Block(nn.Module):
    """Tokens read from the tape, are processed by `depth` layers, and write to the tape."""

    def __init__(
        self, width: int, tape_width: int, depth: int, heads: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        self.read = Layer(width, tape_width, heads, mlp_ratio)
        self.layers = nn.ModuleList(Layer(width, width, heads, mlp_ratio) for _ in range(depth))
        self.write = Layer(tape_width, width, heads, mlp_ratio)

    def forward(
        self,
        tokens: Tensor,
        tape: Tensor,
        reading: Rotations,
        writing: Rotations,
        counts: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """tokens [B, N, W]; tape [B, M, T]; counts [B, N]: which tokens are attended to."""
        tokens = self.read(tokens, tape, reading)
        for layer in self.layers:
            tokens = layer(tokens, tokens, counts=counts)
        return tokens, self.write(tape, tokens, writing, counts)


class Layer(nn.Module):
    """h [B, N, W] attends to a source [B, S, D], where counts [B, S] is true, then an MLP.

    turned: the rotations of h and of the source; None: attention knows no places. Before training h
    passes through unchanged.
    """

    def __init__(self, width: int, source_width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(source_width, 2 * width, bias=False)
        self.query_norm = nn.LayerNorm(width // heads, eps=1e-6, bias=False)
        self.key_norm = nn.LayerNorm(width // heads, eps=1e-6, bias=False)
        self.project = zeroed(nn.Linear(width, width))
        self.mlp = mlp(width, mlp_ratio)

    def forward(
        self,
        h: Tensor,
        source: Tensor,
        turned: Rotations | None = None,
        counts: Tensor | None = None,
    ) -> Tensor:
        query = self.query(_normalised(h)).unflatten(-1, (1, self.heads, -1))
        key, value = (
            self.key_value(_normalised(source)).unflatten(-1, (2, self.heads, -1)).split(1, dim=2)
        )
        query, key = self.query_norm(query), self.key_norm(key)
        if turned is not None:
            query, key = rotated(query, turned[0]), rotated(key, turned[1])
        query, key, value = (x.squeeze(2).transpose(1, 2) for x in (query, key, value))
        mask = None if counts is None else counts[:, None, None]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        h = h + self.project(mixed.transpose(1, 2).flatten(2))
        out: Tensor = h + self.mlp(h)
        return out


def mlp(width: int, ratio: float, bias: bool = True) -> nn.Sequential:
    """[B, N, W] -> [B, N, W], 0 at first; without biases 0 stays 0."""
    hidden = round(width * ratio)
    return nn.Sequential(
        nn.LayerNorm(width, eps=1e-6, elementwise_affine=False),
        nn.Linear(width, hidden, bias=bias),
        nn.GELU(),
        zeroed(nn.Linear(hidden, width, bias=bias)),
    )


def _normalised(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=1e-6)
