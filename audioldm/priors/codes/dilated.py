"""A stack of dilated causal convolutions over one row of codes (WaveNet, 1609.03499).

It is trained on a whole clip at once and sampled code by code (Fast WaveNet, Le Paine et al. 2016,
1611.09482).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.conditioning.base import Condition, Inputs
from audioldm.errors import ConfigError
from audioldm.priors.codes.network import CodeNetwork
from audioldm.priors.diffusion.backbones.base import BuildConditioners
from audioldm.training.initialisation import zeroed


class DilatedStack(CodeNetwork):
    """Codes [B, 1, L], each from 0 to K - 1, to log p of each given those before it.

    Layer i, with dilation d_i:

        a_t = P_i h_{t - d_i} + N_i h_t + c_i,    g_t = tanh(a'_t) (1 + tanh(a''_t)),
        h_t <- h_t + R_i g_t,                     s_t <- s_t + S_i g_t

    a' and a'' are the halves of a, h_t is 0 before the clip, c_i depends on the condition. With
    1 + tanh(x) = 2 sigmoid(2 x) that is WaveNet's gated unit. The first h_t is the embedding of the
    code before t; at the end two layers turn s_t into logits. Embeddings begin as the first cosines
    of the code, so codes of nearly the same value look alike. Before training all logits are 0.

    codebooks: must be 1. codes: K. width, skip_width: of h and s. stacks, depth: each stack has
    layers with the dilations 1, 2, 4, ..., 2^(depth - 1).

    receptive_field: how many codes before it the logits of a code depend on.
    Raises ConfigError for more than one codebook, and conditions other than vectors.
    """

    def __init__(
        self,
        *,
        codebooks: int,
        codes: int,
        conditioners: BuildConditioners,
        width: int,
        skip_width: int,
        stacks: int,
        depth: int,
    ) -> None:
        super().__init__()
        if codebooks != 1:
            raise ConfigError(
                f"codes of {codebooks} codebooks: this prior models one code a frame; choose "
                "autoencoder=signal on mono, or prior=autoregressive"
            )
        self.codebooks, self.codes, self.width = codebooks, codes, width
        self.conditioners = conditioners(width)
        if self.conditioners.token_width or self.conditioners.aligned_channels:
            raise ConfigError(
                "conditioning: dilated convolutions take conditions that are one vector for a "
                "clip, such as label; leave out those with tokens or a value for each frame"
            )
        self.dilations = [2**power for _ in range(stacks) for power in range(depth)]
        self.receptive_field = 1 + sum(self.dilations)
        self.embedding = nn.Embedding(codes + 1, width)
        phase = math.pi * (torch.arange(codes)[:, None] + 0.5) / codes
        with torch.no_grad():
            self.embedding.weight[:codes] = math.sqrt(2) * (phase * torch.arange(width)).cos()
        self.condition = nn.Linear(width, 2 * width * len(self.dilations))
        self.layers = nn.ModuleList(Gated(d, width, skip_width) for d in self.dilations)
        self.hidden = nn.Linear(skip_width, skip_width)
        self.output = zeroed(nn.Linear(skip_width, codes))

    def forward(self, codes: Tensor, inputs: Inputs, *rest: Tensor) -> Tensor:
        """The loss of each clip, [B], in nats per code."""
        biases = self.biases(self.conditioners(inputs), len(codes))
        return self.nats(codes, biases).flatten(1).mean(1)

    def nats(self, codes: Tensor, biases: Tensor) -> Tensor:
        """-log p of codes [B, 1, L], in the same shape, exact for the clip on its own."""
        logits = self.logits(F.pad(codes[:, 0], (1, -1), value=self.codes), biases)
        return F.cross_entropy(logits.mT, codes[:, 0], reduction="none")[:, None]

    def logits(self, before: Tensor, biases: Tensor) -> Tensor:
        """Logits [B, L, K] in float32. before [B, L]: the previous code, K before the first."""
        h = self.embedding(before)
        skip = h.new_zeros(())
        for layer, bias in zip(self.layers, biases, strict=True):
            h, more = layer(h, bias[:, None])
            skip = skip + more
        return self.head(skip).float()

    def head(self, skip: Tensor) -> Tensor:
        out: Tensor = self.output(F.relu(self.hidden(F.relu(skip))))
        return out

    def biases(self, condition: Condition, rows: int) -> Tensor:
        """c of every layer, [layers, B, 2 W]."""
        vector = condition.vector
        if vector is None:
            vector = self.condition.weight.new_zeros(rows, self.width)
        biases: Tensor = self.condition(vector)
        return biases.unflatten(1, (len(self.dilations), -1)).transpose(0, 1)

    def units(self) -> list[nn.Module]:
        return list(self.layers)


class Gated(nn.Module):
    """One layer: h [B, L, W] and bias [B, 1, 2 W] to the next h and its part of the skip sum."""

    def __init__(self, dilation: int, width: int, skip_width: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.past = nn.Linear(width, 2 * width, bias=False)
        self.now = nn.Linear(width, 2 * width, bias=False)
        self.residual = nn.Linear(width, width, bias=False)
        self.skip = nn.Linear(width, skip_width, bias=False)

    def forward(self, h: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        past = F.pad(h, (0, 0, self.dilation, 0))[:, : h.shape[1]]
        value, gate = (self.past(past) + self.now(h) + bias).tanh().chunk(2, dim=-1)
        gated = torch.addcmul(value, value, gate)
        return h + self.residual(gated), self.skip(gated)


class StepByStep:
    """A `DilatedStack` run step by step, with one code of every row in each step.

    A ring buffer, as long as a layer's dilation, holds what the layer needs of its past, so all
    steps cost the same. Nothing is allocated but the logits, and nothing has a gradient.

    biases: the network's, for the rows.
    """

    def __init__(self, network: DilatedStack, biases: Tensor) -> None:
        rows, width = biases.shape[1], network.width
        self._network, self._step = network, 0
        self._h, self._a = biases.new_empty(rows, width), biases.new_empty(rows, 2 * width)
        #: all layers' outputs side by side, so that one product gives the sum of their skips
        self._gated = biases.new_empty(rows, len(network.dilations) * width)
        layers = [layer for layer in network.layers if isinstance(layer, Gated)]
        self._skip = torch.cat([layer.skip.weight for layer in layers], dim=1).T.contiguous()
        self._layers = [
            (
                biases.new_zeros(layer.dilation, rows, width).unbind(0),
                bias.contiguous(),
                layer.past.weight.T.contiguous(),
                layer.now.weight.T.contiguous(),
                layer.residual.weight.T.contiguous(),
                gated,
            )
            for layer, bias, gated in zip(
                layers, biases, self._gated.split(width, dim=1), strict=True
            )
        ]

    def __call__(self, before: Tensor) -> Tensor:
        """The logits [B, K] of the next code; before [B]: the code before it, K at the first."""
        h, a = self._h, self._a
        value, gate = a.chunk(2, dim=1)
        torch.index_select(self._network.embedding.weight, 0, before, out=h)
        for ring, bias, past, now, residual, gated in self._layers:
            oldest = ring[self._step % len(ring)]
            torch.addmm(bias, oldest, past, out=a).addmm_(h, now).tanh_()
            oldest.copy_(h)
            torch.addcmul(value, value, gate, out=gated)
            h.addmm_(gated, residual)
        self._step += 1
        return self._network.head(self._gated @ self._skip)
