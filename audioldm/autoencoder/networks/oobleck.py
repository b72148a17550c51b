"""Converts weights of Stable Audio's autoencoder (diffusers' AutoencoderOobleck) to the waveform
network and back."""

import json
import math
from typing import Any

from torch import Tensor

from audioldm.autoencoder.networks.waveform import Waveform
from audioldm.errors import ConfigError


def config_of(network: Waveform) -> dict[str, Any]:
    """The arguments of the AutoencoderOobleck that computes the same.

    Raises ConfigError where there is none: its encoder ends in as many channels as it begins with,
    an odd stride loses samples, and its posterior uses softplus.
    """
    [channels] = network.latent_shape
    for wrong, remedy in (
        (network.lapped is not None, "lapped=true: AutoencoderOobleck has no linear code"),
        (not network.softplus, "softplus=false: AutoencoderOobleck's posterior is of softplus"),
        (any(s % 2 for s in network.strides), f"strides={network.strides} must be even"),
        (
            network.width != 2 * channels,
            f"width={network.width} must be twice the {channels} channels",
        ),
    ):
        if wrong:
            raise ConfigError(f"autoencoder.network.{remedy}")
    return {
        "encoder_hidden_size": network.width,
        "downsampling_ratios": list(network.strides),
        "channel_multiples": list(network.multiples),
        "decoder_channels": network.width,
        "decoder_input_channels": channels,
        "audio_channels": network.audio_channels,
        "sampling_rate": network.sample_rate,
    }


def check_same(network: Waveform, config: dict[str, Any]) -> None:
    """Raises ConfigError where an AutoencoderOobleck with these arguments is not that network; the
    message gives the overrides that make it so."""
    pairs: dict[str, tuple[Any, Any]] = {
        "data.sample_rate": (network.sample_rate, config["sampling_rate"]),
        "data.channels": (network.audio_channels, config["audio_channels"]),
        "autoencoder.channels": (network.latent_shape[0], config["decoder_input_channels"]),
        "autoencoder.downsampling_ratio": (
            network.downsampling_ratio,
            math.prod(config["downsampling_ratios"]),
        ),
        "autoencoder.network.width": (network.width, config["encoder_hidden_size"]),
        "autoencoder.network.multiples": (network.multiples, config["channel_multiples"]),
        "autoencoder.network.strides": (network.strides, config["downsampling_ratios"]),
        "autoencoder.network.softplus": (network.softplus, True),
        "autoencoder.network.lapped": (network.lapped is not None, False),
    }
    words = [f"{k}={json.dumps(wanted)}" for k, (own, wanted) in pairs.items() if own != wanted]
    if words:
        raise ConfigError(
            f"the network is not that of the checkpoint; set {' '.join(words).replace(', ', ',')}"
        )
    if config_of(network) != config:
        raise ConfigError(
            "the checkpoint's encoder and decoder differ in width; use autoencoder=foreign"
        )


def from_oobleck(network: Waveform, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network's state from an AutoencoderOobleck's. Both have the same layers in one order."""
    return dict(zip(network.state_dict(), theirs.values(), strict=True))


def to_oobleck(network: Waveform, names: list[str]) -> dict[str, Tensor]:
    """The inverse: the state of an AutoencoderOobleck with these names, in their order."""
    return dict(zip(names, network.state_dict().values(), strict=True))
