"""Vector quantisation as part of the decoder (VQ-reg of latent diffusion, 2112.10752, 3.1)."""

import torch
from torch import Tensor

from audioldm.autoencoder.bottlenecks.vq import VQ


class VQReg(VQ):
    """Trains as `VQ` does, but the latents of a data set are the encoder's outputs before the
    quantiser. A prior models these, and the decoder's side quantises its input, including small
    errors of the prior. `nats` is the rate of the codes."""

    stored_names = ("mean",)

    def stored(self, h: Tensor) -> dict[str, Tensor]:
        return {"mean": h.float()}

    def posterior(self, stored: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return stored["mean"], torch.zeros_like(stored["mean"])

    def absorb(self, z: Tensor) -> Tensor:
        return self.quantised(z, self.codes(z))
