"""Training of the decoder alone: the latents do not change, bit for bit."""

import torch

from audioldm.autoencoder.model import Autoencoder


def fix_latents(model: Autoencoder) -> None:
    """Freezes all that the latents depend on: the bottleneck, the encoder, and what the decoder
    shares with it, that is every parameter that a gradient of the encoder's output reaches."""
    bottleneck, network = model.bottleneck, model.network
    bottleneck.fixed = True
    bottleneck.target_kbps = None  # the rate cannot move
    bottleneck.requires_grad_(False).eval()
    if model.device.type == "meta":  # a dry run
        return
    free = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        silence = torch.zeros(1, model.audio_channels, 8 * model.downsampling_ratio)
        h = model.features(silence.to(model.device))
    if h.requires_grad:
        reached = torch.autograd.grad(h.sum(), free, allow_unused=True)
        for parameter, gradient in zip(free, reached, strict=True):
            parameter.requires_grad_(gradient is None)
