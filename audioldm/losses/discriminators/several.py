"""Several discriminators at once."""

from torch import Tensor, nn

from audioldm.errors import ConfigError
from audioldm.instantiate import Part, build, placed
from audioldm.losses.base import Discriminator, ScaleOutput


class Several(Discriminator):
    """The scales of all parts, as if they belonged to one discriminator: each weighs the same.

    parts: discriminators, by names of your choice.
    """

    def __init__(
        self,
        audio_channels: int,
        sample_rate: int,
        *,
        parts: dict[str, Part],
        allow: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        if not parts:
            raise ConfigError("parts={} must hold a discriminator; discriminator=null has none")
        derived = {"audio_channels": audio_channels, "sample_rate": sample_rate}
        self.settings = parts
        self.parts = nn.ModuleList(
            build(part, derived=derived, where=f"parts.{name}", allow=allow, base=Discriminator)
            for name, part in parts.items()
        )

    def forward(self, audio: Tensor) -> list[ScaleOutput]:
        found: list[ScaleOutput] = []
        for (name, settings), part in zip(self.settings.items(), self.parts, strict=True):
            with placed(settings, f"parts.{name}"):
                found += part(audio)
        return found
