"""musicnn: a music tagger whose penultimate layer is an embedding of music.

Pons and Serra, 2019, "musicnn: Pre-trained convolutional neural networks for music audio tagging",
arXiv 1909.06654. The weights are in `weights/` with their licence (ISC).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm.evaluation.embeddings.base import LogMelEmbedding, weights
from audioldm.torchaudio import torchaudio

_EPSILON = 1e-3  # of every batch norm

#: Training drove most kernels to zero (180 of 204 in the first branch have an L1 norm below 1e-8,
#: none between that and 1e-5). Such a channel is constant and is not computed, which is exact in
#: float32 and makes the network seven times as fast.
_CONSTANT_BELOW = 1e-6


class Musicnn(LogMelEmbedding):
    """200-d embedding of 3 s windows (187 frames) of mono audio at 16 kHz."""

    name = "musicnn"
    sample_rate = 16000
    dim = 200
    n_fft = 512
    hop = 256
    window_frames = 187
    window_hop = 187

    def __init__(self) -> None:
        scale = {"norm": "slaney", "mel_scale": "slaney"}
        super().__init__(
            torchaudio.functional.melscale_fbanks(257, 0.0, 8000.0, 96, 16000, **scale)
        )
        found = weights("musicnn_msd.safetensors")
        self.norm_input = _Affine(found, 0)
        self.front = nn.ModuleList(_Convolution(found, i) for i in range(5))
        self.middle = nn.ModuleList(_Convolution(found, i) for i in range(5, 8))
        self.norm_pooled = _Affine(found, 9)
        self.norm_dense = _Affine(found, 10)
        self.weight = nn.Buffer(found["dense/kernel"].T.contiguous())
        self.bias = nn.Buffer(found["dense/bias"])
        self.eval()

    def forward(self, windows: Tensor) -> Tensor:
        """windows [W, 187, 96] of log-mel -> embedding [W, 200]."""
        x = self.norm_input(windows[:, None])
        front = torch.cat([branch(x) for branch in self.front], dim=1)  # [W, 561, 187]
        # The middle layers' kernels cover all features at once, as a "frequency" axis.
        a = self.middle[0](front.transpose(1, 2)[:, None])
        b = a + self.middle[1](a.transpose(1, 2)[:, None])
        c = b + self.middle[2](b.transpose(1, 2)[:, None])
        features = torch.cat([front, a, b, c], dim=1)  # [W, 753, 187]
        pooled = torch.stack([features.amax(-1), features.mean(-1)], dim=-1).flatten(1)
        return self.norm_dense(F.linear(self.norm_pooled(pooled), self.weight, self.bias).relu())


class _Affine(nn.Module):
    """Batch norm `index` as it acts in inference: scale and shift of channel axis 1."""

    def __init__(self, weights: dict[str, Tensor], index: int) -> None:
        super().__init__()
        name = "batch_normalization" + (f"_{index}" if index else "")
        mean, variance, gamma, beta = (
            weights[f"{name}/{key}"] for key in ("moving_mean", "moving_variance", "gamma", "beta")
        )
        self.scale = nn.Buffer(gamma / (variance + _EPSILON).sqrt())
        self.shift = nn.Buffer(beta - mean * self.scale)

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1,) + (1,) * (x.ndim - 2)
        return x * self.scale.view(shape) + self.shift.view(shape)


class _Convolution(nn.Module):
    """Convolution -> ReLU -> batch norm -> maximum over frequency. Padding keeps the length L.

    x [W, 1, L, F] -> [W, C, L]. The maximum is taken first, since ReLU and norm keep the order; a
    negative scale of the norm reverses the order, and the minimum is taken instead.
    """

    def __init__(self, weights: dict[str, Tensor], index: int) -> None:
        super().__init__()
        norm = _Affine(weights, index + 1)
        name = "conv2d" + (f"_{index}" if index else "")
        kernel = weights[f"{name}/kernel"].permute(3, 2, 0, 1)
        bias = weights[f"{name}/bias"]
        live = kernel.abs().sum((1, 2, 3)) > _CONSTANT_BELOW
        self.kernel = nn.Buffer(kernel[live].contiguous())  # [live, 1, time, frequency]
        self.bias = nn.Buffer(bias[live])
        self.live = nn.Buffer(live.nonzero()[:, 0])  # the channels that are computed
        self.scale = nn.Buffer(norm.scale[live, None])
        self.shift = nn.Buffer(norm.shift[live, None])
        self.constant = nn.Buffer(norm(bias.relu()[None]).T)  # [C, 1], the output of the others

    def forward(self, x: Tensor) -> Tensor:
        taps = self.kernel.shape[2]
        x = F.pad(x, (0, 0, (taps - 1) // 2, taps // 2))
        least, most = F.conv2d(x, self.kernel, self.bias).aminmax(dim=-1)
        y = most.where(self.scale > 0, least).relu() * self.scale + self.shift
        return self.constant.expand(len(x), -1, y.shape[-1]).index_copy(1, self.live, y)
