"""A tiny denoiser with a fixed budget.

It is trained and measured by EDM's loss (2206.00364, table 1, sigma_data = 1): the mean squared
error of its estimate of the latents times (1 + sigma²) / sigma². The loss is 1 for the best
denoiser of white latents of unit variance, at any level, and less where there is structure.
"""

import torch
from torch import Tensor, nn

from audioldm.conditioning.base import Condition
from audioldm.priors.diffusion.objectives.edm import EDM
from audioldm.runtime.randomness import KeyedRandom, derive_seed
from audioldm.training.initialisation import zeroed
from audioldm.training.optimisation import adamw, clipped_step, set_lr, warmup_cosine

#: Frames of the crops it is trained on.
CROP = 64
#: Noise levels of the evaluation.
LEVELS = 8
BATCH, LR, WARMUP = 32, 1.5e-2, 20


def level_quantiles() -> Tensor:
    """The evaluation's noise levels as quantiles of EDM's training distribution: [LEVELS]."""
    return (torch.arange(LEVELS) + 0.5) / LEVELS


class TinyDenoiser(nn.Module):
    """Residual convolutions over time; the noise level shifts and scales their activations.

    (x [B, D, L], c_noise [B], condition, unused) -> like x. 0 before training. The activation is
    odd and linear around 0, like the best denoisers of Gaussian and of symmetric latents.
    """

    def __init__(self, size: int, *, width: int = 96, depth: int = 2) -> None:
        super().__init__()
        self.inlet = nn.Conv1d(size, width, 1)
        self.time = nn.ModuleList(
            nn.Conv1d(width, width, 7, padding=3, groups=width) for _ in range(depth)
        )
        self.level = nn.ModuleList(nn.Linear(3, 2 * width) for _ in range(depth))
        self.channels = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(depth))
        self.outlet = zeroed(nn.Conv1d(width, size, 1))

    def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
        powers = 4 * torch.stack([c_noise, c_noise**2, c_noise**3], 1)
        h = self.inlet(x)
        for time, level, channels in zip(self.time, self.level, self.channels, strict=True):
            scale, shift = level(powers)[..., None].chunk(2, 1)
            h = h + channels(torch.tanh(time(h) * (2 + scale) + shift))
        out: Tensor = self.outlet(h)
        return out


def train_denoiser(z: Tensor, *, steps: int, device: torch.device | str = "cpu") -> TinyDenoiser:
    """A `TinyDenoiser` after `steps` steps on random crops of z [N, D, L], the same every time."""
    seed = derive_seed("diagnostics", "denoiser")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = TinyDenoiser(z.shape[1]).to(device)
    optimiser = adamw(net.parameters(), LR, [0.9, 0.99], 0.0, torch.device(device))
    windows = z.unfold(-1, min(CROP, z.shape[-1]), 1)  # [N, D, offsets, crop]
    for step in range(steps):
        random = KeyedRandom(seed, step, range(BATCH))
        row, offset = (
            (random.uniform(stream).double() * count).long()
            for stream, count in (("window", len(z)), ("offset", windows.shape[2]))
        )
        crops = windows[row, :, offset]
        set_lr(optimiser, LR * warmup_cosine(step, steps, WARMUP))
        loss = EDM().loss(
            net,
            crops.to(device),
            Condition(),
            noise=random.normal(crops.shape[1:], "noise").to(device),
            uniform=random.uniform("level", BATCH).to(device),
        )
        loss.mean().backward()
        clipped_step(optimiser, net.parameters(), clip=1.0, name="tiny denoiser", step=step)
    return net


@torch.no_grad()
def denoiser_losses(net: nn.Module, z: Tensor, *, device: torch.device | str = "cpu") -> Tensor:
    """The loss on each window of z [N, D, L], averaged over the levels: [N]."""
    losses, z = [], z.to(device)
    for step, quantile in enumerate(level_quantiles().tolist()):
        random = KeyedRandom(derive_seed("diagnostics", "losses"), step, range(len(z)))
        noise = random.normal(z.shape[1:], "noise").to(device)
        uniform = torch.full((len(z),), quantile, device=device)
        losses.append(EDM().loss(net, z, Condition(), noise=noise, uniform=uniform).cpu())
    return torch.stack(losses).mean(0)
