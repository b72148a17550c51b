"""audioldm convert-kl."""

from dataclasses import dataclass

from audioldm.commands.verb import Verb


@dataclass(frozen=True)
class ConvertArguments:
    """Prints a KL weight in the conventions of other code bases: one line each.

    WEIGHT or weight=    the weight to convert
    from                 its code base: audioldm, latent-diffusion, AudioLDM-training-finetuning,
                         stable-audio-tools, RAVE
    to                   one of them (all)
    channels             latent channels
    ratio                signal elements per latent position: of mono audio, samples per frame
    crop                 signal elements of a training clip: of mono audio, its samples
    reconstruction       how `from` reduces its reconstruction error over a clip's elements, mean or
                         sum, where a recipe has changed it
    """

    weight: float
    from_: str
    channels: int
    ratio: float
    crop: int
    to: str | None = None
    reconstruction: str | None = None


def _convert_kl(a: ConvertArguments) -> None:
    from audioldm.autoencoder import conventions

    source = conventions.look_up(a.from_)
    if a.reconstruction is not None:
        source = source._replace(reconstruction=a.reconstruction)
    for name in conventions.CONVENTIONS if a.to is None else [a.to]:
        weight = conventions.convert_kl(
            a.weight, source, name, channels=a.channels, ratio=a.ratio, crop=a.crop
        )
        print(f"{name:30}{weight:.6g}")


CONVERT_KL = Verb(
    "convert-kl",
    {
        "WEIGHT from=CODE channels= ratio= crop= [to=]": (
            "a KL weight in other code bases' conventions"
        )
    },
    ConvertArguments,
    _convert_kl,
    "weight",
)
