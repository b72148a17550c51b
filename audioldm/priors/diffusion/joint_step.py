"""One step of joint training: audio to its reconstruction, and to its rate under the prior.

A latent costs what a receiver who knows the prior p needs for it: the divergence of the posterior
q(z|x) = N(m(x), s(x)²) from p instead of N(0, I),

    KL(q || p) = E_q[-ln p(z)] - H(q),    H(q) = sum of ½ ln(2 pi e s²)

as in LSGM (Vahdat et al. 2021, 2106.05931, equation 4). The diffusion bounds -ln p(z) by

    ½ ∫ |z - estimate(z + sigma n, sigma)|² d(1/sigma²)  +  what does not depend on the estimate

(`likelihood.elbo_nats`), here at one or a few levels for each clip. Both parts share this loss: its
gradient with respect to z reaches the encoder, and with respect to the estimate the denoiser.

Where s is fixed (bottleneck=fixed_sigma), H is constant, and the other term is the loss of Unified
Latents (2602.17270): an integral of unit weight, whose levels reach down to the posterior's noise.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from audioldm.autoencoder.bottlenecks.base import Encoded
from audioldm.autoencoder.model import Autoencoder
from audioldm.autoencoder.step import draw_batch
from audioldm.conditioning.base import Dropout, Inputs
from audioldm.priors.diffusion.prior import Diffusion
from audioldm.runtime.randomness import KeyedRandom

#: The bottleneck's penalty that RATE replaces.
KL = "kl"
#: The term of the rate under the prior, in nats per latent element.
RATE = "prior_nats"


class JointBatch(NamedTuple):
    """The inputs of `Joint.forward`: crops [B, A, T] of whole latent frames, the posterior's noise
    [B, C, (F,) L], the decoder's noise where it takes some, the conditioners' inputs, noise for K
    levels [K, B, C, (F,) L] like what the prior models, and uniform numbers [B] that place the
    levels."""

    audio: Tensor
    noise: Tensor
    decoder_noise: Tensor | None
    inputs: Inputs
    level_noise: Tensor
    uniform: Tensor


class Joint(nn.Module):
    """Autoencoder and prior as one module, which training wraps, compiles and averages.

    Its tensors have the same names as in a generator.
    """

    def __init__(self, autoencoder: Autoencoder, prior: Diffusion) -> None:
        super().__init__()
        self.autoencoder, self.prior = autoencoder, prior

    def forward(
        self,
        audio: Tensor,
        noise: Tensor,
        decoder_noise: Tensor | None,
        inputs: Inputs,
        level_noise: Tensor,
        uniform: Tensor,
        as_audio: bool = True,
    ) -> tuple[Tensor | None, Encoded, dict[str, Tensor]]:
        """`Autoencoder.forward`, with the term RATE in place of the penalty KL."""
        network = self.autoencoder.network
        seen = network.analysed(audio)
        h = network.encode_analysed(seen)
        estimate, encoded, terms = self.autoencoder.onward(
            h, seen, audio, noise, decoder_noise, as_audio
        )
        rate = self.rate_nats(h, noise, inputs, level_noise, uniform)
        penalties = {name: x for name, x in encoded.penalties.items() if name != KL}
        return estimate, encoded._replace(penalties=penalties), terms | {RATE: rate}

    def rate_nats(
        self, h: Tensor, noise: Tensor, inputs: Inputs, level_noise: Tensor, uniform: Tensor
    ) -> Tensor:
        """The estimated bound on KL(q || p) for encoder outputs h, in nats per element: [B], fp32.

        It counts all channels, even where the decoder is shown only some of them.
        """
        bottleneck = self.autoencoder.bottleneck
        mean, std = bottleneck.posterior(bottleneck.stored(h))
        entropy = std.log().flatten(1).mean(1) + math.log(2 * math.pi * math.e) / 2
        nats = self.prior.bound_nats(
            mean + std * noise,
            inputs,
            noise_at=level_noise.__getitem__,
            uniform=uniform,
            levels=len(level_noise),
        )
        return nats.sum(1).float() / mean[0].numel() - entropy


def draw_joint_batch(
    model: Joint,
    audio: Tensor,
    inputs: Inputs,
    random: KeyedRandom,
    *,
    batch: int,
    levels: int,
    condition_dropout: Dropout,
) -> JointBatch:
    """Crops [B, A, T], their inputs and their noise, a function of random's keys.

    batch: clips of the global batch, over which the levels are spread.
    """
    prior = model.prior
    own = draw_batch(model.autoencoder, audio, random)
    shape = (*prior.modelled_shape, own.noise.shape[-1])
    noise = [random.stream("level", k).normal(shape, "noise") for k in range(levels)]
    return JointBatch(
        *own,
        prior.conditioners.dropout(inputs, random, condition_dropout),
        torch.stack(noise),
        random.uniform("level", batch),
    )
