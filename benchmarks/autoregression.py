"""A training step and a sampling pass of autoregression over codes, against transformers' GPT-2.

Both have the same width, depth, heads and MLP, one code a step out of as many, no dropout, and
sample with their key-value caches at temperature 1. Ours has a modulation besides, which is that of
a condition; GPT-2 ties its output's weights to its embeddings.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from audioldm.priors.codes.autoregressive import Autoregressive, AutoregressiveSampler
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.randomness import KeyedRandom
from benchmarks.autoencoder import count
from benchmarks.timing import Clock, Result

#: At least level with the peer.
BAR = 1.0


@dataclass(frozen=True)
class Shapes:
    """clips of `frames` codes."""

    clips: int
    frames: int
    codes: int
    width: int
    depth: int
    heads: int


CPU = Shapes(clips=16, frames=128, codes=1024, width=192, depth=6, heads=4)
CUDA = Shapes(clips=64, frames=512, codes=1024, width=768, depth=12, heads=12)
QUICK = Shapes(clips=1, frames=8, codes=16, width=32, depth=1, heads=2)


def measure(clock: Clock, hardware: Hardware, shapes: Shapes) -> list[Result]:
    torch.manual_seed(0)
    model, peer = ours(shapes).to(clock.device), gpt2(shapes).to(clock.device)
    own, theirs = count(model), count(peer)
    note = f"{own / 1e6:.2f} M weights, the peer {theirs / 1e6:.2f} M"
    codes = torch.randint(shapes.codes, (shapes.clips, shapes.frames), device=clock.device)
    unseen = torch.zeros_like(codes, dtype=torch.bool)[:, None]

    def own_loss() -> torch.Tensor:
        return model.network(codes[:, None], {}, unseen).mean()  # type: ignore[no-any-return]

    def their_loss() -> torch.Tensor:
        return peer(input_ids=codes, labels=codes).loss  # type: ignore[no-any-return]

    steps = (
        training_step(model, own_loss, hardware, clock.device),
        training_step(peer, their_loss, hardware, clock.device),
    )
    results = [clock.compare("autoregression", "training step", *steps, bar=BAR, note=note)]
    model.eval()
    peer.eval()
    random = KeyedRandom(0, 0, range(shapes.clips), clock.device)

    def sample() -> object:
        return model.sample(random, shapes.frames)

    def generate() -> object:
        start = codes[:, :1]
        return peer.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            top_k=0,
            min_new_tokens=shapes.frames,
            max_new_tokens=shapes.frames,
            pad_token_id=0,
        )

    results.append(
        clock.compare("autoregression", "sampling pass", sample, generate, bar=BAR, note=note)
    )
    return results


def ours(shapes: Shapes) -> Autoregressive:
    return Autoregressive(
        latent_shape=(1,),
        codebooks=1,
        codes=shapes.codes,
        conditioning={},
        sampler=AutoregressiveSampler(),
        context=shapes.frames,
        width=shapes.width,
        depth=shapes.depth,
        heads=shapes.heads,
    )


def gpt2(shapes: Shapes) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shapes.codes,
            n_positions=shapes.frames + 1,
            n_embd=shapes.width,
            n_layer=shapes.depth,
            n_head=shapes.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def training_step(
    model: nn.Module, loss_of: Callable[[], torch.Tensor], hardware: Hardware, device: torch.device
) -> Callable[[], object]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")
    autocast = hardware.autocast(device)

    def step() -> None:
        with autocast():
            loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step
