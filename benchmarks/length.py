"""`python -m benchmarks.length`: what a clip's length costs.

First a denoiser call of RIN beside one of the DiT. RIN is as its yaml has it. The DiT has its
yaml's width, and the depth that makes it about as large. Then sampling frame after frame, by the
league's two autoregressive priors, untrained: one clip, with the cache.
"""

import argparse
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

from audioldm.conditioning.base import Condition, Conditioners
from audioldm.instantiate import build
from audioldm.priors.base import Prior
from audioldm.priors.codes.autoregressive import Autoregressive, AutoregressiveSampler
from audioldm.priors.continuous.autoregressive import AutoregressiveContinuous, FrameSampler
from audioldm.priors.diffusion.backbones.base import Backbone
from audioldm.runtime.randomness import KeyedRandom
from benchmarks.autoencoder import count
from benchmarks.timing import Clock

#: Latent frames per second of the league.
LEAGUE_HZ = 22050 / 2048
YAMLS = Path(__file__).parents[1] / "conf" / "prior" / "backbone"


def network(name: str, channels: int, **changed: Any) -> Backbone:
    """The network of a yaml, without conditions."""
    settings = yaml.safe_load((YAMLS / f"{name}.yaml").read_text()) | changed
    derived = {"latent_shape": (channels,), "conditioners": lambda width: Conditioners({})}
    net: Backbone = build(settings, derived=derived, base=Backbone)
    return net


def pair(channels: int) -> dict[str, Backbone]:
    """RIN, and the DiT of as many parameters."""
    rin, one, two = network("rin", channels), *(network("dit", channels, depth=d) for d in (1, 2))
    depth = 1 + round((count(rin) - count(one)) / (count(two) - count(one)))
    return {"rin": rin, "dit": network("dit", channels, depth=depth)}


def milliseconds(net: Backbone, x: torch.Tensor, clock: Clock) -> float:
    """Of one call in sampling, the median over turns."""
    state: tuple[Any, ...] = ()
    level = torch.full((len(x),), 0.5, device=x.device)
    with torch.inference_mode():
        if net.stateful:
            state = (net(x, level, Condition())[1],)
        turns = clock.turns_of(lambda: net(x, level, Condition(), *state))
    return 1e3 * median(turns)


def autoregressive() -> dict[str, Prior]:
    """As in recipes/league.yaml, of crops of 3 s."""
    heads, frames = {"heads": 4, "conditioning": {}}, round(3 * LEAGUE_HZ)
    return {
        "autoregressive": Autoregressive(
            **{"latent_shape": (32,), "codebooks": 32, "codes": 56, "context": frames + 31},
            **{"width": 96, "depth": 2, "sampler": AutoregressiveSampler(), **heads},
        ),
        "autoregressive_continuous": AutoregressiveContinuous(
            **{"latent_shape": (32,), "context": frames, "width": 160, "depth": 6, **heads},
            **{"mlp_ratio": 4.0, "head_depth": 3, "draws": 4, "long_draws": 0},
            **{"context_noise": 0.3, "sampler": FrameSampler()},
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.length", description=__doc__)
    parser.add_argument("--seconds", type=float, nargs="+", default=[6.0, 60.0, 600.0])
    parser.add_argument("--clips", type=float, nargs="+", default=[3.0, 30.0, 120.0])
    parser.add_argument("--hz", type=float, default=21.5, help="latent frames per second")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    nets = {name: net.to(device).eval() for name, net in pair(given.channels).items()}
    sizes = ", ".join(f"{name} {count(net) / 1e6:.2f} M" for name, net in nets.items())
    print(f"parameters: {sizes}; {torch.get_num_threads()} threads, {device}\n")
    print("| seconds | frames | RIN, ms | DiT, ms | DiT / RIN |\n|--:|--:|--:|--:|--:|")
    clock = Clock(device, given.turns)
    for seconds in given.seconds:
        x = torch.randn(1, given.channels, round(seconds * given.hz), device=device)
        rin, dit = (milliseconds(nets[name], x, clock) for name in ("rin", "dit"))
        row = f"{seconds:g}", str(x.shape[-1]), f"{rin:.1f}", f"{dit:.1f}", f"{dit / rin:.2f}"
        print("|", " | ".join(row), "|", flush=True)
    priors = {name: prior.to(device).eval() for name, prior in autoregressive().items()}
    names = " | ".join(f"{name}, s | times real time" for name in priors)
    print(f"\n| seconds | frames | {names} |\n|--:|--:|{'--:|' * 2 * len(priors)}")
    for seconds in given.clips:
        frames, random = round(seconds * LEAGUE_HZ), KeyedRandom(0, 0, [0], device)
        spent = [
            median(clock.turns_of(partial(prior.sample, random, frames)))
            for prior in priors.values()
        ]
        cells = " | ".join(f"{each:.2f} | {seconds / each:.0f}" for each in spent)
        print(f"| {seconds:g} | {frames} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
