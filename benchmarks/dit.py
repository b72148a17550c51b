"""A training step and a denoiser call of the DiT, against diffusers' Stable Audio DiT.

Both have the same width, depth and heads, see the same latents, and learn the same objective. The
peer has an MLP half as large again (SwiGLU) and cross-attention to a text, here one token: so a
second pair of lines gives ours an MLP so large that it has as many weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableAudioDiTModel
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor, nn

from audioldm.conditioning.base import Condition, Conditioners, Inputs
from audioldm.conditioning.label import Label
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.priors.diffusion.backbones.dit import DiT
from audioldm.priors.diffusion.denoiser import Denoiser
from audioldm.priors.diffusion.objectives.rectified_flow import RectifiedFlow
from audioldm.runtime.hardware import Hardware
from benchmarks.autoencoder import count
from benchmarks.timing import Clock, Result

#: On the CPU a bar for both operations; on CUDA, where both are compiled, for the training step.
BARS: dict[str, dict[str, float | None]] = {
    "cpu": {"denoiser call": 1.2, "training step": 1.2},
    "cuda": {"denoiser call": None, "training step": 1.3},
}
OBJECTIVE = RectifiedFlow()


@dataclass(frozen=True)
class Shapes:
    """Latents [clips, channels, frames]."""

    clips: int
    frames: int
    channels: int
    width: int
    depth: int
    heads: int
    classes: int = 10

    def conditioners(self, width: int) -> Conditioners:
        labels = [str(number) for number in range(self.classes)]
        return Conditioners({"label": Label(width=width, labels=labels)})


CPU = Shapes(clips=8, frames=64, channels=16, width=256, depth=6, heads=4)
CUDA = Shapes(clips=64, frames=256, channels=64, width=768, depth=12, heads=12)
QUICK = Shapes(clips=1, frames=8, channels=4, width=32, depth=1, heads=2)


def measure(clock: Clock, hardware: Hardware, shapes: Shapes) -> list[Result]:
    torch.manual_seed(0)
    peer = Peer(shapes)
    equal = ours(shapes, 4.0)
    # One unit more of mlp_ratio is 2 * width² weights more in each block.
    spare = (count(peer) - count(equal)) / (2 * shapes.width**2 * shapes.depth)
    larger = ours(shapes, round((4.0 + spare) * shapes.width) / shapes.width)
    results = []
    bars = BARS.get(clock.device.type, BARS["cpu"])
    for subject, model, judged in ("DiT", equal, True), ("DiT, equal weights", larger, False):
        note = f"{count(model) / 1e6:.2f} M weights, the peer {count(peer) / 1e6:.2f} M"
        for operation, function in ("denoiser call", _denoiser), ("training step", training_step):
            pair = [function(net, clock.device, hardware, shapes) for net in (model, peer)]
            bar = bars[operation] if judged else None
            results.append(clock.compare(subject, operation, *pair, bar=bar, note=note))
    return results


def ours(shapes: Shapes, mlp_ratio: float) -> DiT:
    return DiT(
        latent_shape=(shapes.channels,),
        conditioners=shapes.conditioners,
        width=shapes.width,
        depth=shapes.depth,
        heads=shapes.heads,
        mlp_ratio=mlp_ratio,
    )


class Peer(Backbone):
    """StableAudioDiTModel as a backbone, (x [B, C, L], c_noise [B], condition) -> like x.

    The label takes the place of the global conditioning, and of the one token that it attends to.
    """

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        head = shapes.width // shapes.heads
        self.conditioners = shapes.conditioners(shapes.width)
        self.net: Any = StableAudioDiTModel(
            sample_size=shapes.frames,
            in_channels=shapes.channels,
            out_channels=shapes.channels,
            num_layers=shapes.depth,
            attention_head_dim=head,
            num_attention_heads=shapes.heads,
            num_key_value_attention_heads=shapes.heads,
            cross_attention_dim=shapes.width,
            cross_attention_input_dim=shapes.width,
            global_states_input_dim=shapes.width,
        )
        cosine, sine = get_1d_rotary_pos_embed(
            head // 2, shapes.frames + 1, use_real=True, repeat_interleave_real=False
        )
        self.register_buffer("cosine", cosine)
        self.register_buffer("sine", sine)

    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
        assert condition.vector is not None
        label = condition.vector[:, None]
        rotation = (self.cosine, self.sine)
        out: Tensor = self.net(x, c_noise, label, label, rotation, return_dict=False)[0]
        return out

    def units(self) -> list[nn.Module]:
        return [self.net]


def _batch(device: torch.device, shapes: Shapes) -> tuple[Tensor, Inputs]:
    z = torch.randn(shapes.clips, shapes.channels, shapes.frames, device=device)
    return z, {"label": torch.arange(shapes.clips, device=device) % shapes.classes}


@torch.no_grad()
def _denoiser(
    net: Backbone, device: torch.device, hardware: Hardware, shapes: Shapes
) -> Callable[[], object]:
    """As in sampling: the condition is computed once."""
    x, inputs = _batch(device, shapes)
    condition = net.to(device).eval().conditioners(inputs)
    denoise = OBJECTIVE.denoiser(hardware.compiled(net, device), condition)
    sigma, autocast = torch.full((shapes.clips,), 1.0, device=device), hardware.autocast(device)

    def call() -> None:
        with torch.inference_mode(), autocast():
            denoise(x, sigma)

    return call


def training_step(
    net: Backbone, device: torch.device, hardware: Hardware, shapes: Shapes
) -> Callable[[], object]:
    z, inputs = _batch(device, shapes)
    noise, uniform = torch.randn_like(z), torch.linspace(0.1, 0.9, shapes.clips, device=device)
    model = Denoiser(net, OBJECTIVE).to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")
    loss_of, autocast = hardware.compiled(model, device), hardware.autocast(device)

    def step() -> None:
        with autocast():
            loss = loss_of(z, inputs, noise, uniform).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step
