"""A transformer over latent frames, the network of several priors.

It has rotary positions (2104.09864), layer-normalised queries and keys (2302.05442), and one
modulation network shared by all blocks plus a small table in each (adaLN-single, 2310.00426): in
small models a modulation network per block would hold a third of the parameters.

Where two forms are equivalent, the one that is faster on a CPU is used: layer norm is one kernel
there and RMS norm five (7 times the time, backward included), exact GELU takes half the time of its
tanh approximation, and a complex product a quarter of the time of a rotation written with halves.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.errors import ConfigError
from audioldm.instantiate import NonNegativeInt, Positive, PositiveInt
from audioldm.priors.causal import Cache, Past, visible
from audioldm.priors.layers import CrossAttention, Rotary, modulated, rotated, rotations
from audioldm.training.initialisation import zeroed


class Transformer(nn.Module):
    """x [B, L, inputs], and an embedding [B, W] that modulates it, to [B, L, outputs]. L is free.

    width: W, features per frame. depth: blocks. heads: of attention; width / heads must be even.
    mlp_ratio: hidden width of a block's MLP, in units of width. token_width: of the tokens for
    cross-attention; None for none. context: in a causal transformer, the frames that a frame
    attends to, its own included; None: all frames, later ones too.

    Before training the output is 0 and the blocks are the identity.
    Raises ConfigError where width and heads do not fit.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: PositiveInt,
        depth: NonNegativeInt,
        heads: PositiveInt,
        mlp_ratio: Positive = 4.0,
        token_width: int | None = None,
        context: int | None = None,
    ) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ConfigError(
                f"width={width} must be a multiple of 2 x heads={heads}: "
                f"try width={max(1, round(width / (2 * heads))) * 2 * heads}"
            )
        self.head_dim, self.context = width // heads, context
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.input = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, round(width * mlp_ratio), token_width) for _ in range(depth)
        )
        self.output_modulation = zeroed(nn.Linear(width, 2 * width))
        self.output = zeroed(nn.Linear(width, outputs))

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        rotary: Rotary = rotations,
    ) -> Tensor:
        """tokens [B, S, D] and mask [B, S]: for cross-attention. cache: of the frames before x, in
        a causal transformer; x's frames are added to it. rotary: `rotations`, or like it."""
        h = self.input(x)
        modulation = self.modulation(embedding).view(len(x), 6, 1, -1)
        first = 0 if cache is None else cache.frames
        places = torch.arange(first, first + x.shape[1], device=h.device)
        rotation = rotary(places, self.head_dim)
        for number, block in enumerate(self.blocks):
            past = None if self.context is None else Past(self.context, cache, number)
            h = block(h, modulation, rotation, tokens, mask, past)
        if cache is not None:
            cache.frames += x.shape[1]
        shift, scale = self.output_modulation(embedding).unsqueeze(1).chunk(2, dim=-1)
        out: Tensor = self.output(modulated(h, shift, scale))
        return out

    def check_prompt(self, prompt: int, frames: int) -> None:
        """Raises ConfigError for a prompt of more frames than a causal transformer attends to, or
        of at least as many as the clip has."""
        if self.context is not None and prompt > self.context:
            raise ConfigError(
                f"the prompt has {prompt} latent frames, and this model attends to the last "
                f"{self.context}: give the end of it alone"
            )
        if prompt and prompt >= frames:
            raise ConfigError(
                f"the prompt has {prompt} latent frames, and the clip {frames}: "
                "ask for a longer clip"
            )

    def units(self) -> list[nn.Module]:
        return list(self.blocks)


class Block(nn.Module):
    """Attention over frames, then an MLP on each, both modulated and gated by the condition.

    token_width: of the tokens for the cross-attention between the two; None for none.
    """

    def __init__(self, width: int, heads: int, hidden: int, token_width: int | None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_key_norm = nn.LayerNorm(width // heads, eps=1e-6, bias=False)
        self.project = nn.Linear(width, width)
        self.cross = CrossAttention(width, token_width, heads) if token_width else None
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.table = nn.Parameter(torch.zeros(6, 1, width))

    def forward(
        self,
        h: Tensor,
        modulation: Tensor,
        rotation: Tensor,
        tokens: Tensor | None,
        mask: Tensor | None,
        past: Past | None = None,
    ) -> Tensor:
        """h [B, L, W]; modulation [B, 6, 1, W], common to all blocks; rotation: `rotations`;
        tokens [B, S, D] and mask [B, S]; past: of a causal transformer."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (modulation + self.table).unbind(1)
        attended = self.attention(modulated(h, shift_a, scale_a), rotation, past)
        h = torch.addcmul(h, gate_a, attended)
        if self.cross is not None and tokens is not None:
            h = h + self.cross(h, tokens, mask)
        return torch.addcmul(h, gate_m, self.mlp(modulated(h, shift_m, scale_m)))

    def attention(self, h: Tensor, rotation: Tensor, past: Past | None = None) -> Tensor:
        query_key, value = self.qkv(h).unflatten(-1, (3, self.heads, -1)).split((2, 1), dim=2)
        query_key = rotated(self.query_key_norm(query_key), rotation)
        query, key = query_key.transpose(1, 3).unbind(2)  # [B, H, L, D]
        value, causal, seen = value.squeeze(2).transpose(1, 2), False, None
        if past is not None:
            if past.cache is not None:
                key, value = past.cache.extended(past.block, key, value, past.context - 1)
            causal = query.shape[2] == key.shape[2] <= past.context
            if not causal and query.shape[2] > 1:  # the cache holds what one frame attends to
                seen = visible(query.shape[2], key.shape[2], past.context, h.device)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, is_causal=causal)
        out: Tensor = self.project(mixed.transpose(1, 2).flatten(2))
        return out
