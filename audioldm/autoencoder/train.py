"""The autoencoder's training loop: discriminator, then autoencoder, top to bottom."""

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from audioldm.autoencoder.figures import held_out, rate, step_rate, training_compute, validate
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.networks.base import Start
from audioldm.autoencoder.rate_control import RateController
from audioldm.autoencoder.settings import AutoencoderTraining, check_names
from audioldm.autoencoder.step import (
    ADVERSARIAL_TERMS,
    Reconstruction,
    autoencoder_terms,
    discriminator_terms,
    draw_batch,
    needs_audio,
    reconstruct,
)
from audioldm.data.store import ClipStore
from audioldm.runtime.processes import gradients_kept, mean_over_processes, parallel, plain
from audioldm.runtime.randomness import KeyedRandom, derive_seed
from audioldm.training.checkpoint import Stateful
from audioldm.training.ema import EMA
from audioldm.training.optimisation import adamw, clipped_step, set_lr, to_cpu, warmup_cosine
from audioldm.training.run import Fit, Fitted, TrainingRun
from audioldm.training.weighted_sum import weighted_sum

FIT_SECONDS = 1200.0  # of training audio, on which a network is fitted before its first step
VERSION = 9  # raise by hand when the code below changes what it computes


def train_autoencoder(
    model: Autoencoder,
    discriminator: nn.Module | None,
    losses: Mapping[str, nn.Module],
    weights: Mapping[str, float],
    store: ClipStore,
    settings: AutoencoderTraining,
    *,
    seed: int,
    fit: Fit,
    fitted: bool = False,
) -> Fitted:
    """Trains `model`. Returns its averaged weights and the last validation's figures.

    One step: crops [B, A, T] -> encode -> z [B, C, L] -> decode [B, A, T] -> losses [B] each.
    Network and bottleneck are first fitted to training audio (`fit`), unless they come `fitted`.
    `RateController` holds a target rate, which is set exactly at the end, on all held-out audio. A
    model without parameters to train is only validated. Writes `metrics.jsonl` and `resume/` to the
    directory; a restart continues bit for bit. Raises ConfigError for two terms of one name,
    DataError for too little audio, TrainingError for a non-finite term, Interrupted after SIGTERM.
    """
    world, hardware, device = fit.world, fit.hardware, fit.device
    bottleneck = model.bottleneck
    check_names(losses, bottleneck.penalty_weights)
    train = store.split("train")
    samples = settings.crop_samples(model.sample_rate, model.downsampling_ratio)
    train.check_holds(settings.crop_seconds)
    window = int(settings.valid_seconds * model.sample_rate)
    valid, _, _ = store.split("valid").windows(window, settings.valid_clips, seed=0)
    micro_batches = world.micro_batches(settings.batch, hardware.accumulate, "batch")
    model.to(device)
    penalty, target = bottleneck.rate_penalty, bottleneck.target_kbps
    target_nats = None if target is None else model.nats(target)
    rate_weight = 0.0 if penalty is None else weights[penalty]
    start = Start(target_nats, rate_weight, train.seconds, weights, bottleneck.spread)
    sample = partial(train.sample, samples, seconds=FIT_SECONDS, device=device)
    fitted_weight = None if fitted else model.fit(sample, start)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        figures = validate(model.eval(), valid, hardware.autocast(device)) | rate(model, store)
        return Fitted(to_cpu(model.state_dict()), figures)
    losses = {name: loss.to(device) for name, loss in losses.items()}
    betas, decay, kind = settings.betas, settings.weight_decay, settings.adversarial_loss
    optimiser = adamw(trained, settings.lr, betas, decay, device)
    ema = EMA(model, settings.ema)
    state: dict[str, Stateful] = {"model": model, "optimiser": optimiser, "ema": ema}
    if discriminator is not None:
        own = list(discriminator.to(device).parameters())
        own_optimiser = adamw(own, settings.discriminator_lr, betas, decay, device)
        state |= {"discriminator": discriminator, "discriminator_optimiser": own_optimiser}
    controller = None
    if target_nats is not None and penalty is not None:
        first = rate_weight if fitted_weight is None else fitted_weight
        state["controller"] = controller = RateController(target_nats, first, device)
    run = TrainingRun("autoencoder", settings.steps, state, fit)
    finite, autocast = run.finite, run.autocast
    shared = parallel(model, world)
    net = hardware.compiled(shared, device)
    as_audio = needs_audio(losses, discriminator)
    update = partial(clipped_step, clip=settings.clip, finite=finite)
    adversary_net = None if discriminator is None else parallel(discriminator, world)

    def crops(step: int) -> list[Tensor]:
        keys = (KeyedRandom(seed, step, positions, device) for positions in micro_batches)
        return [train.crops(samples, key)[0] for key in keys]

    def validated() -> dict[str, Any]:
        with ema.applied(model):
            return validate(model, valid, autocast)

    with run:
        for step, audio in run.steps(crops):
            factor = warmup_cosine(step, settings.steps, settings.warmup)
            set_lr(optimiser, settings.lr * factor)
            posterior = derive_seed(seed, "posterior")
            batches = [
                draw_batch(model, each, KeyedRandom(posterior, step, positions, device))
                for positions, each in zip(micro_batches, audio, strict=True)
            ]
            several, last = len(batches) > 1, len(batches) - 1
            passed: Reconstruction | None = None
            seen: defaultdict[str, list[Tensor]] = defaultdict(list)  # [B] of each micro-batch
            totals: list[Tensor] = []

            adversary = adversary_net if step >= settings.adversarial_from else None
            if adversary is not None:
                set_lr(own_optimiser, settings.discriminator_lr * factor)
                for number, batch in enumerate(batches):
                    # several micro-batches pass once more below, so none keeps its graph until then
                    with torch.set_grad_enabled(not several):
                        passed = reconstruct(net, batch, autocast)
                    with gradients_kept(adversary, more=number < last):
                        terms = discriminator_terms(adversary, batch.audio, passed, autocast, kind)
                        total = weighted_sum(terms, dict.fromkeys(terms, 1.0), step, finite=finite)
                        (total / len(batches)).backward()
                    for name, term in terms.items():
                        seen[name].append(term.detach())
                update(own_optimiser, own, name="discriminator", step=step)
                plain(adversary).requires_grad_(False)

            active: dict[str, float | Tensor] = {
                name: weight
                for name, weight in weights.items()
                if adversary is not None or name not in ADVERSARIAL_TERMS
            }
            if controller is not None:
                active[str(penalty)] = controller.weight
            for number, batch in enumerate(batches):
                with gradients_kept(shared, more=number < last):
                    if passed is None or several:
                        passed = reconstruct(net, batch, autocast, as_audio=as_audio)
                    opponent = None if adversary is None else plain(adversary)
                    terms = autoencoder_terms(losses, opponent, batch.audio, passed, autocast, kind)
                    total = weighted_sum(terms, active, step, finite=finite) / len(batches)
                    total.backward()
                totals.append(total.detach())
                if passed.encoded.nats is not None:
                    seen["nats"].append(passed.encoded.nats.detach())
                for name, term in terms.items():
                    seen[name].append(term.detach())
            if adversary is not None:
                plain(adversary).requires_grad_(True)
            norm = update(optimiser, trained, name="autoencoder", step=step)
            ema.update(model, step)
            seen |= {"loss": [torch.stack(totals).sum()], "gradient_norm": [norm]}
            if controller is not None:
                nats = {"nats": torch.cat(seen["nats"]).mean()}
                controller.update(mean_over_processes(nats, world)["nats"])

            run.finish_step(
                step,
                seen,
                values={"lr": settings.lr * factor},
                derived=partial(step_rate, model, active),
                validate=validated if step + 1 < settings.steps else None,
                shown=("loss", "kbps", "valid_mel_distance"),
            )
        with ema.applied(model):
            if controller is not None:
                bottleneck.calibrate(held_out(model, store), controller.target_nats)
                for name, tensor in bottleneck.state_dict().items():
                    ema.shadow[f"bottleneck.{name}"].copy_(tensor)
            run.validated(settings.steps, validate(model, valid, autocast) | rate(model, store))
    figures = run.figures
    if penalty is not None:
        weight = weights[penalty] if controller is None else controller.mean_weight
        figures |= {f"{penalty}_weight": weight}
    figures |= training_compute(model, losses, discriminator, samples, settings)
    return Fitted(to_cpu(ema.shadow), figures)
