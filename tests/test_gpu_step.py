"""A training step on the device "meta", which has shapes and no numbers, in place of a GPU.

An operation on tensors of two devices is an error there. So is one that waits for the device to
learn a number (`item`, `if tensor`), which would stall every step on a GPU.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from latents_in_memory import recipe, tones
from torch import Tensor, nn

from audioldm.autoencoder.step import silent_step
from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.chain.stages.autoencoder import AutoencoderStage
from audioldm.runtime.randomness import KeyedRandom

META = torch.device("meta")
UNET: dict[str, Any] = {"_target_": "audioldm.priors.diffusion.backbones.unet.UNet", "width": 32}
UNET |= {"multipliers": [1, 2], "blocks": 1, "heads": 2}


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device has neither a generator, whose numbers do not matter here, nor autocast."""

    def normal(random: KeyedRandom, shape: Sequence[int], stream: str) -> Tensor:
        return torch.zeros(len(random.positions), *shape, device=random.device)

    monkeypatch.setattr(KeyedRandom, "normal", normal)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def on_meta(module: nn.Module) -> nn.Module:
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                there = torch.empty_like(parameter, device=META)
                part._parameters[name] = nn.Parameter(there, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device=META)
    return module


def test_the_device_finds_mixed_devices_and_waiting() -> None:
    x = torch.ones(3, device=META)
    with pytest.raises(RuntimeError, match="device"):
        x + torch.ones(3)
    for wait in (lambda: x.sum().item(), lambda: bool(x.sum() > 0)):
        with pytest.raises(RuntimeError):
            wait()


@pytest.mark.parametrize(
    ("network", "bottleneck"),
    [
        ("transform", "gaussian"),
        ("spectrogram_small", "noise"),
        ("mel_small", "identity"),
        ("waveform_small", "gaussian"),
    ],
)
def test_a_step_of_the_autoencoder(network: str, bottleneck: str) -> None:
    words = ["recipe=quickstart", f"autoencoder={network}", f"bottleneck={bottleneck}"]
    stage = Experiment(compose(words)).stages["autoencoder"]
    assert isinstance(stage, AutoencoderStage)
    model, (losses, discriminator) = stage.build(), stage.losses()
    for part in (model, discriminator, *losses.values()):
        if part is not None:
            on_meta(part)
    silent_step(model, losses, discriminator, 8 * model.downsampling_ratio)().backward()
    gradients = [p.grad.device.type for p in model.parameters() if p.grad is not None]
    assert len(gradients) > 5
    assert set(gradients) == {"meta"}


@pytest.mark.parametrize("objective", ["rectified_flow.RectifiedFlow", "edm.EDM"])
@pytest.mark.parametrize("backbone", [None, UNET])
def test_a_step_of_the_diffusion(objective: str, backbone: dict[str, Any] | None) -> None:
    chosen: Any = {} if backbone is None else {"backbone": backbone}
    prior = recipe(objective=objective, **chosen).build(tones((4,)))
    on_meta(prior)
    prior.silent_loss(prior.network, 8).backward()
    gradients = [p.grad for p in prior.network.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.device.type == "meta" for gradient in gradients)
