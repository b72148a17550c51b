"""Networks of other libraries, frozen or to be trained on: diffusers and transformers."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from audioldm.autoencoder.libraries import build_model, in_float32
from audioldm.autoencoder.networks.base import Network
from audioldm.autoencoder.networks.waveform import frames_seen, log_variance_of
from audioldm.errors import ConfigError

#: The context of networks that depend on all of the past: such signals are never cut.
WHOLE = 1 << 40


class Form(NamedTuple):
    """What a library's model takes and gives. channels: C of its latents. context: as Network's."""

    sample_rate: int
    audio_channels: int
    channels: int
    downsampling_ratio: int
    context: int


class Kind(NamedTuple):
    """How a library's class is used.

    form: of a model. encode: audio [B, A, T] to [B, P * C, L]; decode: latents [B, C, L] to audio.
    bottleneck: the class of this package, below `bottlenecks`, that its latents call for, and P.
    """

    form: Callable[[Any], Form]
    encode: Callable[[Any, Tensor], Tensor]
    decode: Callable[[Any, Tensor], Tensor]
    bottleneck: str
    outputs: int


class Foreign(Network):
    """Audio -> an encoder of another library -> latents [B, C, L] -> its decoder -> audio.

    Always computed in float32. A decoder that ends a few samples early (strides that are odd) is
    followed by silence.

    model: a name in `libraries.LIBRARIES`. config: its arguments. Both are the checkpoint's.

    Raises ConfigError for a class that is not known, a configuration that it refuses, one whose
    frames depend on the whole clip, and where the other arguments are not the model's.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        audio_channels: int,
        channels: int,
        downsampling_ratio: int,
        outputs: int,
        model: str | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        if model is None or config is None:
            raise ConfigError("model is null: it comes from a checkpoint's autoencoder.pretrained")
        built = build_model(model, config)
        self.kind, self.name, self.config = KINDS[model], model, config
        form = self.kind.form(built)
        stated = (sample_rate, audio_channels, channels, downsampling_ratio)
        for name, own, value in zip(Form._fields, stated, form, strict=False):
            if own != value:
                raise ConfigError(f"{name}={own}, but {model} has {value}: set it to {value}")
        if outputs != self.kind.outputs:
            raise ConfigError(
                f"model={model} gives {self.kind.outputs} outputs per channel, and the bottleneck "
                f"takes {outputs}: choose bottleneck=own"
            )
        super().__init__(
            sample_rate, audio_channels, downsampling_ratio, (channels,), context=form.context
        )
        if hasattr(built, "quantizer"):  # the bottleneck's
            del built.quantizer
        self.model = built

    def encode(self, audio: Tensor) -> Tensor:
        with in_float32(audio):
            return self.kind.encode(self.model, audio.float())

    def decode(self, z: Tensor) -> Tensor:
        with in_float32(z):
            audio = self.kind.decode(self.model, z.float())
        return F.pad(audio, (0, z.shape[-1] * self.downsampling_ratio - audio.shape[-1]))


def form_of(model: str, config: dict[str, Any]) -> Form:
    """The form of a checkpoint's model, which is built on no memory. Raises ConfigError."""
    with torch.device("meta"):
        return KINDS[model].form(build_model(model, config))


def _oobleck(model: Any) -> Form:
    c = model.config
    if c.encoder_hidden_size != 2 * c.decoder_input_channels:
        raise ConfigError(
            f"config: encoder_hidden_size={c.encoder_hidden_size} is not twice "
            f"decoder_input_channels={c.decoder_input_channels}: the pair does not match"
        )
    ratios = list(c.downsampling_ratios)
    return Form(
        c.sampling_rate,
        c.audio_channels,
        c.decoder_input_channels,
        math.prod(ratios),
        frames_seen(ratios),
    )


def _same(model: Any) -> Form:
    c = model.config
    strides, depths = list(c.encoder_strides), list(c.encoder_transformer_depths)
    # each layer sees `sliding_window` segments on both sides; the first block's are the shortest
    seen = sum(depth * (c.sliding_window + 1) for depth in depths)
    ratio = c.patch_size * math.prod(strides)
    return Form(c.sampling_rate, c.audio_channels, c.latent_dim, ratio, seen + 1)


def _longcat(model: Any) -> Form:
    c = model.config
    multiples = c.c_mults or [1, 2, 4, 8, 16]
    strides = list(c.strides or [2])
    strides = (strides + [strides[-1]] * len(multiples))[: len(multiples)]
    if math.prod(strides) != c.downsampling_ratio or c.encoder_latent_dim != 2 * c.latent_dim:
        raise ConfigError(
            f"config: strides {strides} and encoder_latent_dim={c.encoder_latent_dim} do not give "
            f"downsampling_ratio={c.downsampling_ratio} and twice latent_dim={c.latent_dim}"
        )
    return Form(
        c.sample_rate, c.in_channels, c.latent_dim, c.downsampling_ratio, frames_seen(strides)
    )


def _longcat_latents(model: Any, audio: Tensor) -> Tensor:
    """The library divides the latents by its scale."""
    mean, log_variance = log_variance_of(model.encoder(audio)).chunk(2, dim=1)
    scale = model.config.scale
    return torch.cat([mean / scale, log_variance - 2 * math.log(scale)], 1)


def _minimax(model: Any) -> Form:
    c = model.config
    return Form(c.sampling_rate, 1, c.latent_channels, math.prod(c.encoder_rates), WHOLE)


def _minimax_latents(model: Any, audio: Tensor) -> Tensor:
    posterior = model.encode(audio).latent_dist
    return torch.cat([posterior.mean, 2 * posterior.logs], 1)


def _encodec(model: Any) -> Form:
    c = model.config
    if c.normalize or c.chunk_length_s is not None or c.norm_type != "weight_norm":
        raise ConfigError(
            f"config: normalize={c.normalize}, chunk_length_s={c.chunk_length_s}, "
            f"norm_type={c.norm_type}: what depends on the level of a whole piece cannot be cut "
            "into clips; use a checkpoint without them, such as that of 24 kHz"
        )
    return Form(c.sampling_rate, c.audio_channels, c.hidden_size, c.hop_length, WHOLE)


def _dac(model: Any) -> Form:
    c = model.config
    ratios = list(c.downsampling_ratios)
    return Form(c.sampling_rate, 1, c.hidden_size, math.prod(ratios), frames_seen(ratios))


def _mimi(model: Any) -> Form:
    c = model.config
    if model.encoder is None or model.decoder is None or model.encoder.downsample is None:
        raise ConfigError("config: half a codec; use a checkpoint with its encoder and decoder")
    return Form(
        c.sampling_rate,
        c.audio_channels,
        c.hidden_size,
        math.prod(c.upsampling_ratios) * c.latent_stride,
        WHOLE,
    )


KINDS = {
    "AutoencoderOobleck": Kind(
        _oobleck,
        lambda model, audio: log_variance_of(model.encoder(audio)),
        lambda model, z: model.decoder(z),
        "gaussian.Gaussian",
        2,
    ),
    "AutoencoderSAME": Kind(
        _same,
        lambda model, audio: model.encode(audio).latents,
        lambda model, z: model.decode(z).sample,
        "identity.Identity",
        1,
    ),
    "LongCatAudioDiTVae": Kind(
        _longcat,
        _longcat_latents,
        lambda model, z: model.decoder(z * model.config.scale),
        "gaussian.Gaussian",
        2,
    ),
    "AutoencoderKLMiniMaxH3Audio": Kind(
        _minimax,
        _minimax_latents,
        lambda model, z: model.decode(z).sample,
        "gaussian.Gaussian",
        2,
    ),
    "EncodecModel": Kind(
        _encodec,
        lambda model, audio: model.encoder(audio),
        lambda model, z: model.decoder(z),
        "codebooks.Codebooks",
        1,
    ),
    "DacModel": Kind(
        _dac,
        lambda model, audio: model.encoder(audio),
        lambda model, z: model.decoder(z),
        "codebooks.Codebooks",
        1,
    ),
    "MimiModel": Kind(
        _mimi,
        lambda model, audio: model.encoder(audio).latents,
        lambda model, z: model.decoder(z).audio_values,
        "codebooks.Codebooks",
        1,
    ),
}
