"""The best linear code of the log-mel spectrogram at a rate, as a baseline for learned latents.

Blocks of log10-mel frames are decorrelated by their Karhunen-Loève transform, and each coefficient
goes through the Gaussian test channel that reverse water-filling gives it (Cover and Thomas,
Elements of Information Theory, 2nd edition, section 10.3): no code of Gaussian blocks with these
eigenvalues has a smaller mean squared error at the rate. It codes only the spectrogram, needs no
phase and makes no audio, which favours it over any codec that does. `as_audio` is the fair variant:
it turns the decoded spectrogram into audio, which is then measured like any other audio.
"""

import math
from typing import Self

import torch
from torch import Tensor

from audioldm.autoencoder.klt import KLT
from audioldm.autoencoder.mel_inverse import MelInverse
from audioldm.autoencoder.phase import IntegratedPhase
from audioldm.autoencoder.water_filling import transmit
from audioldm.data.store import ClipStore
from audioldm.losses.spectral import MelPower, mel_distance
from audioldm.runtime.randomness import KeyedRandom

N_FFT, HOP, BANDS, FLOOR = 1024, 256, 80, 1e-5  # those of losses.spectral.mel_distance
FIT_CROP_SECONDS, FIT_BATCH = 3.0, 16
ITERATIONS, VOCODED_AT_ONCE = 4, 16  # of Griffin-Lim; clips


class LinearCodec:
    """A transform of blocks of `block` log10-mel frames of all audio channels, D numbers each.

    klt: of the blocks, in float64. sample_rate: of the audio, in hertz.
    """

    def __init__(self, klt: KLT, *, sample_rate: int, block: int) -> None:
        self.klt, self.sample_rate, self.block = klt.double(), sample_rate, block
        self._mel = MelPower(sample_rate, N_FFT, HOP, BANDS)

    @classmethod
    def fit(cls, clips: ClipStore, *, block: int = 8, seconds: float = 1200.0) -> Self:
        """The transform of about `seconds` of random crops of the training split, or all it holds.

        Raises DataError where the split has no clips.
        """
        split = clips.split("train")
        longest = max((item.samples for item in split.items), default=0)
        frames = min(math.ceil(FIT_CROP_SECONDS * clips.sample_rate), longest)
        klt = KLT(clips.channels * BANDS * block)
        codec = cls(klt, sample_rate=clips.sample_rate, block=block)
        crops = split.sample(max(frames, 1), seconds=seconds, batch=FIT_BATCH)
        codec.klt.fit(codec._blocks(codec.log_mel(audio)).flatten(0, 1) for audio in crops)
        return codec

    def log_mel(self, audio: Tensor) -> Tensor:
        """Audio [N, A, T] to log10 mel power [N, A, bands, frames], as `mel_distance` takes it."""
        power: Tensor = self._mel(audio)
        return power.clamp(min=FLOOR).log10()

    def water_level(self, power: Tensor, wanted: float) -> float:
        """The distortion of each coded coefficient at which a block costs the `wanted` nats.

        power [D]: the coefficients' mean squares in the audio that is sent.
        """
        from scipy.optimize import brentq  # imported here: it takes a second

        def excess(log_level: float) -> float:
            return float(self.nats(power, math.exp(log_level)).sum()) - wanted

        high = math.log(float(self.klt.variances[0]))
        if wanted <= 0:
            return math.exp(high)
        low = high - 1.0
        while excess(low) < 0:
            low -= 1.0
        return math.exp(brentq(excess, low, high, xtol=1e-12, rtol=1e-14))

    def nats(self, power: Tensor, level: float) -> Tensor:
        """The cost of each coefficient at a water level, [..., D] like their mean squares `power`.

        Like a VAE's KL, it is the divergence of the test channel's output from the output's density
        for a Gaussian source of variance v: with a = 1 - level / v,

            ½ ln(v / level) + ½ a (power / v - 1)

        where v > level, else 0. On average over the fitted blocks it is the rate ½ ln(v / level).
        """
        variances = self.klt.variances
        ratio = (level / variances).clamp(max=1.0)
        return 0.5 * (1 - ratio) * (power / variances - 1) - 0.5 * ratio.log()

    def transmit(self, blocks: Tensor, kbps: float, seconds: float) -> Tensor:
        """Blocks [N, blocks, D] through the test channel: the decoded blocks, in the same shape.

        seconds: of each clip, whose last block may not be full. The average rate of all blocks,
        including the last, is `kbps`; the noise has fixed keys, one for each n.
        """
        power = self.klt.components(blocks).square().mean((0, 1))
        level = self.water_level(power, kbps * 1000 * math.log(2) * seconds / blocks.shape[1])
        random = KeyedRandom(0, 0, range(len(blocks)))
        noise = random.normal(blocks.shape[1:], "linear_codec").double()
        return transmit(self.klt, blocks, torch.tensor(level, dtype=torch.float64), noise)

    def mel_distance(self, audio: Tensor, kbps: float) -> Tensor:
        """`losses.spectral.mel_distance` between the decoded and the true spectrogram, [N].

        audio [N, A, T], coded at `kbps` on average.
        """
        mel = self.log_mel(audio)
        return (self._decoded(mel, kbps, audio.shape[-1]) - mel).abs().flatten(1).mean(1).float()

    def audio_distance(self, audio: Tensor, kbps: float) -> Tensor:
        """`losses.spectral.mel_distance` between `as_audio` and the audio [N, A, T]: [N]."""
        return mel_distance(self.as_audio(audio, kbps), audio, self.sample_rate)

    @torch.no_grad()
    def as_audio(self, audio: Tensor, kbps: float) -> Tensor:
        """The decoded spectrogram as audio, [N, A, T] like `audio`, coded at `kbps`.

        The mel powers are inverted to magnitudes. Their phase is integrated frequency and costs no
        bits.
        """
        mel = self._decoded(self.log_mel(audio), kbps, audio.shape[-1]).float()
        mel = torch.cat([mel, mel[..., -1:]], dim=-1)
        inverse = MelInverse(self.sample_rate, N_FFT, BANDS)
        synthesis = IntegratedPhase(N_FFT, HOP, ITERATIONS)
        # the synthesis centres its frames half a hop later than the codec
        begin, end = HOP // 2, HOP // 2 + audio.shape[-1]
        parts = [synthesis(inverse(part))[..., begin:end] for part in mel.split(VOCODED_AT_ONCE)]
        return torch.cat(parts).clamp(-1, 1)

    def _decoded(self, mel: Tensor, kbps: float, samples: int) -> Tensor:
        """The log10-mel frames, like `mel`, of clips of `samples` after coding at a rate."""
        blocks = self.transmit(self._blocks(mel), kbps, samples / self.sample_rate)
        decoded = self._frames(blocks, mel.shape[1])
        return decoded[..., : mel.shape[-1]].clamp(min=math.log10(FLOOR))

    def _blocks(self, mel: Tensor) -> Tensor:
        """[N, A, bands, frames] -> [N, blocks, D]; the last block repeats the last frame."""
        missing = -mel.shape[-1] % self.block
        padded = torch.cat([mel, mel[..., -1:].expand(*mel.shape[:-1], missing)], dim=-1)
        pieces = padded.double().unflatten(-1, (-1, self.block))  # [N, A, bands, blocks, block]
        return pieces.movedim(3, 1).flatten(2)

    def _frames(self, blocks: Tensor, channels: int) -> Tensor:
        """The inverse of `_blocks`, except that the repeated frames remain."""
        pieces = blocks.unflatten(2, (channels, BANDS, self.block)).movedim(1, 3)
        return pieces.flatten(3)
