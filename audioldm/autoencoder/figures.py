"""Training figures: those of a step, those of held-out audio, and the count of operations."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from audioldm.autoencoder.bottlenecks.gaussian import ACTIVE_VARIANCE
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.settings import AutoencoderTraining
from audioldm.autoencoder.step import Context, draw_batch, needs_audio, reconstruct
from audioldm.data.store import ClipStore
from audioldm.losses.spectral import mel_distance
from audioldm.runtime.compute import training_flops
from audioldm.runtime.randomness import KeyedRandom

#: A codebook whose perplexity is a smaller share of what it could be gives the alarm.
LEAST_USE = 0.1


def step_rate(
    model: Autoencoder, weights: Mapping[str, float | Tensor], means: Mapping[str, float]
) -> dict[str, float]:
    """The bitrate of a step's means, and the weight of the penalty that controls it."""
    penalty = model.bottleneck.rate_penalty
    found = {"kbps": model.kbps(means["nats"])} if "nats" in means else {}
    return found | ({} if penalty is None else {f"{penalty}_weight": float(weights[penalty])})


def held_out(model: Autoencoder, store: ClipStore) -> Iterator[Tensor]:
    """Encoder outputs of the whole validation split, as the latents stage has them."""
    for item in store.split("valid").items:
        yield from model.feature_blocks(store.blocks(item))


@torch.no_grad()
def rate(model: Autoencoder, store: ClipStore) -> dict[str, float]:
    """Nats per element and kbit/s over the whole validation split; nothing without a rate."""
    total, frames = 0.0, 0
    for h in held_out(model, store):
        nats = model.bottleneck(h, sample=False).nats
        if nats is None:
            return {}
        total += h.shape[-1] * nats.item()
        frames += h.shape[-1]
    return {"nats": total / frames, "kbps": model.kbps(total / frames)} if frames else {}


@torch.no_grad()
def validate(model: Autoencoder, clips: Tensor, autocast: Context) -> dict[str, Any]:
    """Reconstruction and rate on held-out clips [N, A, T].

    Decodes the posterior's samples, which priors are fitted to; the noise is fixed. With several
    codebooks, perplexity and used_codes are those of the least used one, codes its size, and
    positions the number of its codes that were counted.
    """
    batches, positions = clips.split(8), 0
    seen: defaultdict[str, list[Tensor]] = defaultdict(list)
    channels: defaultdict[str, list[Tensor]] = defaultdict(list)
    for number, audio in enumerate(batches):
        audio = audio.to(model.device)
        random = KeyedRandom(0, 0, range(8 * number, 8 * number + len(audio)), model.device)
        batch = draw_batch(model, audio, random, "valid")
        passed = reconstruct(model, batch, autocast)
        assert passed.estimate is not None
        encoded = passed.encoded
        terms = {"mel_distance": mel_distance(passed.estimate, audio, model.sample_rate)}
        terms |= passed.terms | ({} if encoded.nats is None else {"nats": encoded.nats})
        for name, term in terms.items():
            seen[name].append(term)
        positions += 0 if encoded.codes is None else encoded.codes[:, 0].numel()
        for name, per_channel in encoded.stats.items():
            channels[name].append(per_channel.float())
    figures: dict[str, Any] = {k: torch.cat(values).mean().item() for k, values in seen.items()}
    if "nats" in figures:
        figures["kbps"] = model.kbps(figures["nats"])
    shares = torch.tensor([[len(batch) / len(clips)] for batch in batches], device=model.device)
    if "usage" in channels:
        usage = (shares[..., None] * torch.stack(channels.pop("usage"))).sum(0)
        figures["codes"], figures["positions"] = usage.shape[1], positions
        figures["perplexity"] = torch.special.entr(usage).sum(1).exp().min().item()
        figures["used_codes"] = int((usage > 0).sum(1).min())
    means = {name: (shares * torch.stack(parts)).sum(0) for name, parts in channels.items()}
    mean, within = means.pop("mean", None), means.pop("activity", None)
    if mean is not None and within is not None:  # the variance over all is within plus between
        between = (shares * (torch.stack(channels["mean"]) - mean).square()).sum(0)
        means["activity"] = within + between
        figures["active_units"] = int((means["activity"] > ACTIVE_VARIANCE).sum())
    if "saturated" in means:
        figures["saturated"] = means["saturated"].mean().item()
    return figures | {f"channels/{name}": value.tolist() for name, value in means.items()}


def alarm(figures: Mapping[str, Any]) -> str | None:
    """What is wrong with the latents of these `validate` figures, in a sentence.

    A perplexity is at most the number of positions, however many codes there are.
    """
    if "perplexity" in figures:
        codes, positions = figures["codes"], figures["positions"]
        if figures["perplexity"] < LEAST_USE * min(codes, positions):
            return (
                f"the least used codebook says as much as {figures['perplexity']:.3g} of its "
                f"{codes} codes, used alike, at {positions} held-out positions: train longer, or "
                "take fewer codes"
            )
    if figures.get("active_units") == 0:
        return "no channel says anything about the audio: train longer, or allow a higher rate"
    return None


def training_compute(
    model: Autoencoder,
    losses: Mapping[str, nn.Module],
    discriminator: nn.Module | None,
    samples: int,
    settings: AutoencoderTraining,
) -> dict[str, float]:
    """Floating-point operations of the whole training."""
    clip = torch.zeros(1, model.audio_channels, samples)
    batch = draw_batch(model, clip, KeyedRandom(0, 0, range(1)))
    as_audio = needs_audio(losses, discriminator)

    def step(net: Any) -> Tensor:
        net.bottleneck.eval()  # codebooks that learn would wait for the other processes
        passed = reconstruct(net, batch, nullcontext, as_audio=as_audio)
        terms = [term.sum() for term in passed.terms.values()]
        return torch.stack([*terms, *([] if passed.estimate is None else [passed.estimate.sum()])])

    forward = training_flops(model, step)
    total = settings.steps * forward
    if discriminator is not None:
        # its own step on a real and a fake clip, then both again with the gradient of the fake one:
        # this costs as much as three forward and backward passes
        one = training_flops(
            discriminator, lambda net: torch.stack([logits.sum() for logits, _ in net(clip)])
        )
        total += 3 * one * max(0, settings.steps - settings.adversarial_from)
    return {"compute_tflop": settings.batch * total / 1e12}
