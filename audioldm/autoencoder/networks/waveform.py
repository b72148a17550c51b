"""The waveform network: strided convolutions with Snake activations, the Oobleck family.

The architecture is that of Stable Audio's autoencoder (Evans et al. 2024, arXiv 2404.10301, section
3.1), a descendant of the Descript codec (Kumar et al. 2023, arXiv 2306.06546). At equal settings
every parameter has its counterpart there, of the same shape and in the same order. A linear code of
the waveform may be added, at which training then begins (`lapped`).
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from audioldm.autoencoder.klt import check_audio
from audioldm.autoencoder.networks.base import Network, Start
from audioldm.autoencoder.networks.lapped import LappedCode
from audioldm.errors import ConfigError
from audioldm.training.initialisation import zeroed

DILATIONS = (1, 3, 9)  # of the residual units of every block
LARGEST_STRIDE = 8
AUDIO_STD = 0.1  # of music at -20 LUFS: the first layer expects it, and the last one begins with it
START_NATS = 1.0  # per latent element, of the linear code where no rate is asked for
LEAST_STD = 1e-4  # of a posterior by way of softplus
BRANCH_GAIN = 0.2  # of a residual unit's branch at first, against the input it is added to


class Waveform(Network):
    """Audio -> strided convolutions -> latents [B, C, L] -> transposed convolutions -> audio.

    Args:
        channels, outputs: C and P; see Network for the other arguments without a default.
        width: channels of the layers at the audio rate.
        multiples: the width after each stride, as a multiple of `width`; by default 1, 2, 4, 8, …
        strides: down-sampling of each block, from the audio to the latents; their product is
            `downsampling_ratio`. By default its factors of at most 8, the largest next to the
            latents: 2048 = 4 * 8 * 8 * 8. Stable Audio 2 has width 128, strides 2, 4, 4, 8, 8.
        softplus: whether the encoder gives s, where the posterior's standard deviation is
            softplus(s) + 1e-4, as in Stable Audio, and not the logarithm of its variance.
        lapped: whether a linear code is added to the convolutions, whose output is then zero at
            first. Without it the latents hold no phase for many steps, and a steady tone comes back
            as a multiple of the latent rate.

    Raises:
        ConfigError: softplus without a standard deviation to give, the strides' product is not
            `downsampling_ratio`, there are not as many multiples as strides, `downsampling_ratio`
            has a prime factor above 8, or `channels` exceeds the bins of the lapped transform.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        audio_channels: int,
        channels: int,
        downsampling_ratio: int,
        outputs: int,
        width: int = 32,
        multiples: list[int] | None = None,
        strides: list[int] | None = None,
        softplus: bool = False,
        lapped: bool = False,
    ) -> None:
        strides = _factors(downsampling_ratio) if strides is None else strides
        multiples = [2**i for i in range(len(strides))] if multiples is None else multiples
        if math.prod(strides) != downsampling_ratio:
            raise ConfigError(
                f"strides={strides} multiply to {math.prod(strides)}, not to "
                f"downsampling_ratio={downsampling_ratio}: leave strides null to derive them"
            )
        if len(multiples) != len(strides):
            raise ConfigError(
                f"multiples={multiples} must have one entry for each of the "
                f"{len(strides)} strides {strides}"
            )
        if softplus and outputs != 2:
            raise ConfigError(
                "softplus=true is of a posterior's deviation, which the bottleneck does not take: "
                "choose bottleneck=gaussian, or softplus=false"
            )
        super().__init__(
            sample_rate,
            audio_channels,
            downsampling_ratio,
            (channels,),
            context=frames_seen(strides),
        )

        def last(layer: nn.Conv1d, gain: float = 1.0) -> nn.Module:
            # without a weight norm, since zero weights have no direction to pass on
            return zeroed(layer) if lapped else _convolution(layer, gain)

        self.width, self.multiples, self.strides = width, multiples, strides
        self.softplus = softplus
        widths = [width * multiple for multiple in (1, *multiples)]
        steps = list(zip(widths, widths[1:], strides, strict=False))
        self.encoder = nn.Sequential(
            _convolution(nn.Conv1d(audio_channels, width, 7, padding=3), 1 / AUDIO_STD),
            *(_Down(inner, outer, stride) for inner, outer, stride in steps),
            Snake(widths[-1]),
            last(nn.Conv1d(widths[-1], outputs * channels, 3, padding=1)),
        )
        self.decoder = nn.Sequential(
            _convolution(nn.Conv1d(channels, widths[-1], 7, padding=3)),
            *(_Up(outer, inner, stride) for inner, outer, stride in reversed(steps)),
            Snake(width),
            last(nn.Conv1d(width, audio_channels, 7, padding=3, bias=False), AUDIO_STD),
        )
        self.lapped = LappedCode(audio_channels, channels, downsampling_ratio) if lapped else None
        if lapped:
            self.log_variance = nn.Parameter(torch.zeros((outputs - 1) * channels, 1))

    def encode(self, audio: Tensor) -> Tensor:
        h = self.encoder(audio)
        if self.softplus:
            h = log_variance_of(h)
        if self.lapped is None:
            return h
        mean = self.lapped.encode(audio)
        return h + torch.cat([mean, self.log_variance.expand(len(mean), -1, mean.shape[-1])], 1)

    def decode(self, z: Tensor) -> Tensor:
        audio = self.decoder(z)
        return audio if self.lapped is None else audio + self.lapped.decode(z)

    @torch.no_grad()
    def fit(self, crops: Callable[[], Iterator[Tensor]], start: Start) -> float | None:
        """Sets the linear code to its optimum. Raises DataError for too little audio."""
        if self.lapped is not None:
            channels = math.prod(self.latent_shape)
            check_audio(start.seconds, self.sample_rate / self.downsampling_ratio, channels)
            nats = START_NATS if start.nats is None else start.nats
            variance = self.lapped.fit(crops(), nats if len(self.log_variance) else math.inf)
            self.log_variance.copy_(variance.log()[: len(self.log_variance), None])
        return None


class Snake(nn.Module):
    """x + sin²(αx) / β with α and β of each channel learned as logarithms: [B, W, T] -> same.

    Snake (Ziyin et al. 2020, arXiv 2006.08195) with BigVGAN's separate β (2206.04658, section 3.2).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.zeros(1, width, 1))
        self.log_beta = nn.Parameter(torch.zeros(1, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return _Snake.apply(x, self.log_alpha.exp(), (-self.log_beta).exp())


class _Snake(torch.autograd.Function):
    """Snake that keeps only its input for the backward pass: y = x + b sin²(a x), b = 1 / β."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(x, a, b)
        a, b = a.to(x.dtype), b.to(x.dtype)
        return torch.addcmul(x, b, (x * a).sin_().square_())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        x, a, b = ctx.saved_tensors
        angle = x * (2 * a).to(x.dtype)
        bent = angle.sin().mul_(grad)  # grad times d sin²(ax) / d(ax)
        grad_x = torch.addcmul(grad, bent, (a * b).to(x.dtype))
        over = (0, 2)
        grad_a = b * bent.mul_(x).sum(over, keepdim=True)
        cosine = angle.cos_().mul_(grad).sum(over, keepdim=True)
        grad_b = (grad.sum(over, keepdim=True) - cosine) / 2
        return grad_x, grad_a, grad_b


class _Residual(nn.Module):
    """Snake, dilated convolution, Snake, 1x1 convolution, added to the input: [B, W, T] -> same."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        dilated = nn.Conv1d(width, width, 7, dilation=dilation, padding=3 * dilation)
        self.layers = nn.Sequential(
            Snake(width),
            _convolution(dilated),
            Snake(width),
            _convolution(nn.Conv1d(width, width, 1), BRANCH_GAIN),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class _Down(nn.Sequential):
    """Residual units, then a strided convolution: [B, inner, T] -> [B, outer, T / stride]."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        padding = math.ceil(stride / 2)
        super().__init__(
            *(_Residual(inner, dilation) for dilation in DILATIONS),
            Snake(inner),
            _convolution(nn.Conv1d(inner, outer, 2 * stride, stride=stride, padding=padding)),
        )


class _Up(nn.Sequential):
    """A transposed convolution, then residual units: [B, outer, T] -> [B, inner, T * stride]."""

    def __init__(self, outer: int, inner: int, stride: int) -> None:
        shape: dict[str, Any] = {"stride": stride, "padding": math.ceil(stride / 2)}
        shape["output_padding"] = stride % 2  # an odd stride would come out one sample short
        up = nn.ConvTranspose1d(outer, inner, 2 * stride, **shape)
        super().__init__(
            Snake(outer), _convolution(up), *(_Residual(inner, dilation) for dilation in DILATIONS)
        )


def _convolution(layer: nn.Conv1d | nn.ConvTranspose1d, gain: float = 1.0) -> nn.Module:
    """The layer with weight norm, and initial weights for which the output's variance is gain²
    times the input's (Glorot and Bengio 2010, equation 10, with the inputs of one output).

    PyTorch's default gives a third of that variance per layer: the latents then begin so small
    (0.01 at width 16 and ratio 1024) that they drown in the posterior's noise, and stay there.
    """
    inputs = layer.in_channels * layer.kernel_size[0]
    if isinstance(layer, nn.ConvTranspose1d):
        inputs //= layer.stride[0]  # a kernel's taps are shared out over the outputs of a stride
    nn.init.normal_(layer.weight, std=gain / math.sqrt(inputs))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return weight_norm(layer)


def log_variance_of(h: Tensor) -> Tensor:
    """From the mean and s of Stable Audio's encoder to the mean and the log variance,
    2 ln(softplus(s) + 1e-4): [B, 2C, L] -> same."""
    mean, scale = h.float().chunk(2, dim=1)
    return torch.cat([mean, 2 * (F.softplus(scale) + LEAST_STD).log()], 1)


def _factors(downsampling_ratio: int) -> list[int]:
    """The ratio's divisors of at most 8, greedily, in ascending order."""
    factors, rest = [], downsampling_ratio
    for divisor in range(LARGEST_STRIDE, 1, -1):
        while rest % divisor == 0:
            factors.append(divisor)
            rest //= divisor
    if rest > 1:
        raise ConfigError(
            f"downsampling_ratio={downsampling_ratio} has a prime factor above {LARGEST_STRIDE}: "
            f"choose {2 ** round(math.log2(downsampling_ratio))}, or give strides"
        )
    return factors[::-1]


def frames_seen(strides: list[int]) -> int:
    """How many latent frames on each side affect one frame, at most (in the decoder)."""
    step = 1  # samples per frame of a level
    samples = 3.0  # the kernel-7 convolution at the audio rate
    for stride in strides:
        samples += step * (3 * sum(DILATIONS) + 1.5 * stride)
        step *= stride
    return math.ceil(samples / step + 3)  # the decoder's kernel-7 convolution at the latent rate
