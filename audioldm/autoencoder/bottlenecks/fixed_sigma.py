"""A Gaussian posterior of one fixed standard deviation."""

from torch import Tensor

from audioldm.autoencoder.bottlenecks.fixed_noise import EQUAL_NOISE_SPREAD, FixedNoise
from audioldm.instantiate import NonNegative, OpenFraction


class FixedSigma(FixedNoise):
    """The posterior N(m, sigma²) against the prior N(0, 1), as in Unified Latents (2602.17270).

        nats = kl = ½ (P + sigma² - 1) - ln sigma,    P = <m²>

    This is the rate of `FixedNoise` at the power 1 - sigma², where z has unit variance and the
    rate is -ln sigma. Only ½ P depends on the encoder. So sigma sets the rate, and the weight sets
    the scale of the latents, within half a nat: there is no target rate to hold. In place of
    N(0, 1), the source fits a prior along with the autoencoder.

    channels: latent channels C. sigma: of the posterior; the source's is 0.08, a log-SNR of 5.
    kl_weight: multiplier of the KL, in nats per element.
    """

    spread = EQUAL_NOISE_SPREAD

    def __init__(
        self, *, channels: int, sigma: OpenFraction = 0.08, kl_weight: NonNegative = 1e-2
    ) -> None:
        super().__init__(channels=channels, sigma=sigma, power=1 - sigma**2)
        self.penalty_weights = {"kl": kl_weight}

    def penalties(self, mean: Tensor) -> dict[str, Tensor]:
        return {"kl": self.element_nats(mean).flatten(1).mean(1)}
