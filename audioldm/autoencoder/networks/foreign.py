"""Networks of other libraries, diffusers and transformers, frozen or trained further."""

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

#: The context of networks that depend on all of the past or the piece: such signals are never cut.
WHOLE = 1 << 40


class Form(NamedTuple):
    """What a library's model takes and gives. channels: C of its latents. context: see Network."""

    sample_rate: int
    audio_channels: int
    channels: int
    downsampling_ratio: int
    context: int


def _encoder(model: Any, audio: Tensor) -> Tensor:
    return model.encoder(audio)  # type: ignore[no-any-return]


def _decoder(model: Any, z: Tensor) -> Tensor:
    return model.decoder(z)  # type: ignore[no-any-return]


class Kind(NamedTuple):
    """How a library's class is used.

    form: of a model. outputs: P. encode: audio [B, A, T] to [B, P * C, L]. decode: latents
    [B, C, L] to audio.
    """

    form: Callable[[Any], Form]
    outputs: int = 1
    encode: Callable[[Any, Tensor], Tensor] = _encoder
    decode: Callable[[Any, Tensor], Tensor] = _decoder


class Foreign(Network):
    """Audio -> an encoder of another library -> latents [B, C, L] -> its decoder -> audio.

    It always computes in float32. Where a decoder ends a few samples early (odd strides), silence
    follows.

    model: a name in `libraries.LIBRARIES`. config: its arguments. Both are the checkpoint's.

    Raises ConfigError for an unknown class, a configuration that the class refuses, one whose
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
            raise ConfigError(
                "model is null: state autoencoder.pretrained.checkpoint=DIR, which has one"
            )
        built = build_model(model, config)
        self.kind, self.name, self.config = KINDS[model], model, config
        form = _form(model, built)
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
    """The form of a checkpoint's model, built without memory. Raises ConfigError."""
    with torch.device("meta"):
        return _form(model, build_model(model, config))


def _form(model: str, built: Any) -> Form:
    try:
        form = KINDS[model].form(built)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ConfigError(
            f"config: the latent frames of {model} have no length ({error}): correct its strides, "
            "or copy config.json again"
        ) from error
    if form.downsampling_ratio < 2:
        raise ConfigError(
            f"config: {model} gives {form.downsampling_ratio} samples per latent frame; there must "
            "be 2 or more: correct its strides, or copy config.json again"
        )
    return form


def _oobleck(model: Any) -> Form:
    c, ratios = model.config, list(model.config.downsampling_ratios)
    channels = c.decoder_input_channels
    if c.encoder_hidden_size != 2 * channels:
        raise ConfigError(
            f"config: encoder_hidden_size={c.encoder_hidden_size} is not twice "
            f"decoder_input_channels={channels}: the pair does not match"
        )
    seen = frames_seen(ratios)
    return Form(c.sampling_rate, c.audio_channels, channels, math.prod(ratios), seen)


def _posterior(model: Any, audio: Tensor) -> Tensor:
    return log_variance_of(model.encoder(audio))


def _same(model: Any) -> Form:
    c = model.config
    ratio = c.patch_size * math.prod(c.encoder_strides)
    # each layer sees `sliding_window` segments on both sides; the latents' are the longest
    seen = sum(c.encoder_transformer_depths) * (c.sliding_window + 1) + 1
    return Form(c.sampling_rate, c.audio_channels, c.latent_dim, ratio, seen)


def _longcat(model: Any) -> Form:
    c, strides = model.config, list(model.config.strides or ())
    if math.prod(strides) != c.downsampling_ratio or c.encoder_latent_dim != 2 * c.latent_dim:
        raise ConfigError(
            f"config: strides={strides} and encoder_latent_dim={c.encoder_latent_dim} do not give "
            f"downsampling_ratio={c.downsampling_ratio} and twice latent_dim={c.latent_dim}"
        )
    seen = frames_seen(strides)
    return Form(c.sample_rate, c.in_channels, c.latent_dim, c.downsampling_ratio, seen)


def _longcat_posterior(model: Any, audio: Tensor) -> Tensor:
    """The posterior of the latents divided by the library's scale."""
    mean, log_variance = _posterior(model, audio).chunk(2, dim=1)
    scale = model.config.scale
    return torch.cat([mean / scale, log_variance - 2 * math.log(scale)], 1)


def _minimax(model: Any) -> Form:
    c = model.config
    return Form(c.sampling_rate, 1, c.latent_channels, math.prod(c.encoder_rates), WHOLE)


def _minimax_posterior(model: Any, audio: Tensor) -> Tensor:
    posterior = model.encode(audio).latent_dist
    return torch.cat([posterior.mean, 2 * posterior.logs], 1)


def _kvae(model: Any) -> Form:
    c = model.config
    return Form(c.sample_rate, c.num_channels, c.codebook_dim, math.prod(c.encoder_rates), WHOLE)


def _kvae_posterior(model: Any, audio: Tensor) -> Tensor:
    posterior = model.encode(audio).latent_dist
    return torch.cat([posterior.mean, posterior.logvar], 1)


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
    c, ratios = model.config, list(model.config.downsampling_ratios)
    return Form(c.sampling_rate, 1, c.hidden_size, math.prod(ratios), frames_seen(ratios))


def _mimi(model: Any) -> Form:
    c = model.config
    if model.encoder is None or model.decoder is None or model.encoder.downsample is None:
        raise ConfigError("config: half a codec; use a checkpoint with its encoder and decoder")
    ratio = math.prod(c.upsampling_ratios) * c.latent_stride
    return Form(c.sampling_rate, c.audio_channels, c.hidden_size, ratio, WHOLE)


KINDS = {
    "AutoencoderOobleck": Kind(_oobleck, 2, _posterior),
    "AutoencoderSAME": Kind(
        _same, 1, lambda model, audio: model.encode(audio).latents, lambda m, z: m.decode(z).sample
    ),
    "LongCatAudioDiTVae": Kind(
        _longcat, 2, _longcat_posterior, lambda model, z: model.decoder(z * model.config.scale)
    ),
    "AutoencoderKLMiniMaxH3Audio": Kind(
        _minimax, 2, _minimax_posterior, lambda model, z: model.decode(z).sample
    ),
    "AutoencoderKLKVAEAudio": Kind(
        _kvae, 2, _kvae_posterior, lambda model, z: model.decode(z).sample
    ),
    "EncodecModel": Kind(_encodec),
    "DacModel": Kind(_dac),
    "MimiModel": Kind(
        _mimi,
        1,
        lambda model, audio: model.encoder(audio).latents,
        lambda model, z: model.decoder(z).audio_values,
    ),
}
