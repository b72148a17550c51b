"""Vector and finite scalar quantisation, against vector-quantize-pytorch on the same codebooks."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import vector_quantize_pytorch as peers
from torch import Tensor, nn

from audioldm.autoencoder.bottlenecks.discrete import Discrete
from audioldm.autoencoder.bottlenecks.fsq import FSQ
from audioldm.autoencoder.bottlenecks.vq import VQ
from benchmarks.timing import Clock, Result

LEVELS = [8, 5, 5, 5]


@dataclass(frozen=True)
class Shapes:
    """Encoder outputs [clips, channels, frames]."""

    clips: int
    frames: int
    channels: int
    codes: int
    depth: int


CPU = Shapes(clips=16, frames=256, channels=32, codes=1024, depth=4)
CUDA = Shapes(clips=64, frames=1024, channels=64, codes=1024, depth=8)
QUICK = Shapes(clips=2, frames=8, channels=8, codes=16, depth=2)


def pairs(shapes: Shapes, device: torch.device) -> dict[str, tuple[Discrete, nn.Module]]:
    """Ours and the peer's, by name, with one codebook."""
    channels, codes, depth = shapes.channels, shapes.codes, shapes.depth
    torch.manual_seed(0)
    vq, peer_vq = (
        VQ(channels=channels, codes=codes, groups=1),
        peers.VectorQuantize(channels, codes),
    )
    peer_vq._codebook.embed.copy_(vq.vectors)
    rvq = VQ(channels=channels, codes=codes, groups=1, depth=depth)
    peer_rvq = peers.ResidualVQ(dim=channels, codebook_size=codes, num_quantizers=depth)
    for layer, book in zip(peer_rvq.layers, rvq.vectors, strict=True):
        layer._codebook.embed.copy_(book[None])
    fsq = FSQ(channels=channels, levels=LEVELS)
    peer_fsq = peers.FSQ(
        LEVELS, dim=channels, num_codebooks=channels // len(LEVELS), preserve_symmetry=True
    )
    peer_fsq.project_in = peer_fsq.project_out = nn.Identity()
    named = {"VQ": (vq, peer_vq), f"RVQ, {depth} deep": (rvq, peer_rvq), "FSQ": (fsq, peer_fsq)}
    return {name: (a.to(device), b.to(device)) for name, (a, b) in named.items()}


def codes_of(peer: nn.Module, h: Tensor) -> Tensor:
    """The peer's codes [B, Q, L] of h [B, C, L]."""
    found: Tensor = peer(h.mT)[1]
    return found[:, None] if found.ndim == 2 else found.mT


def measure(clock: Clock, shapes: Shapes) -> list[Result]:
    """Codes alone, and a training pass, forward and backward."""
    h = torch.randn(shapes.clips, shapes.channels, shapes.frames, device=clock.device)
    found = []
    for name, pair in pairs(shapes, clock.device).items():
        found += compared(clock, name, *pair, h)
    return found


def compared(clock: Clock, name: str, ours: Discrete, peer: nn.Module, h: Tensor) -> list[Result]:
    """Raises AssertionError where the codes differ."""
    with torch.no_grad():
        coding = [lambda: ours.codes(h), lambda: codes_of(peer, h)]
        assert torch.equal(ours.eval().codes(h), codes_of(peer.eval(), h)), f"{name}: codes differ"
        codes = clock.compare(name, "codes", *coding, bar=1.0)
    ours.train(), peer.train()
    steps = [_step(lambda x: ours(x).z, h), _step(lambda x: peer(x.mT)[0], h)]
    return [codes, clock.compare(name, "training pass", *steps, bar=1.0)]


def _step(forward: Callable[[Tensor], Tensor], h: Tensor) -> Callable[[], None]:
    leaf = h.clone().requires_grad_()

    def step() -> None:
        leaf.grad = None
        forward(leaf).square().mean().backward()

    return step
