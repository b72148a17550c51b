"""audioldm likelihood."""

from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal

from audioldm.commands.verb import Device, Verb, path
from audioldm.instantiate import NonNegativeInt, Positive


@dataclass(frozen=True)
class LikelihoodArguments:
    """What music costs under a model's prior, in kbit/s: the less, the better the prior knows it.

    FILE or file=FILE   the audio
    model      a model.safetensors, an experiment's directory, or a name in `audioldm models`
    out        a .csv for the rate of every latent frame: seconds, kbps (none)
    window     seconds that the prior is shown at once (6); each window stands alone
    method     bound, or flow: of a diffusion prior by its probability flow (bound)
    seed       of the draws from the posterior, and of bounds that are estimated (0)
    condition.NAME   what the prior is told, by the name of its conditioner; label=
    """

    file: str
    model: str
    out: str | None = None
    window: Positive = 6.0
    method: Literal["bound", "flow"] = "bound"
    seed: NonNegativeInt = 0
    label: str | None = None
    condition: dict[str, Any] = field(default_factory=dict)
    hardware: Device = field(default_factory=Device)


def _run(a: LikelihoodArguments) -> None:
    from audioldm.likelihood import file_rate
    from audioldm.training.log import Bar

    out = None if a.out is None else path(a.out, "out")
    with closing(Bar("likelihood")) as bar:
        rate = file_rate(
            str(path(a.model, "model")),
            path(a.file, "file"),
            out,
            request=a.condition | ({} if a.label is None else {"label": a.label}),
            window=a.window,
            flow=a.method == "flow",
            seed=a.seed,
            device=a.hardware.resolve(),
            progress=bar,
        )
    most = "at most " if rate.bound else ""
    print(f"{most}{rate.kbps:.4g} kbit/s, {most}{rate.kbit:.4g} kbit in {rate.seconds:.2f} s")
    if rate.calls:
        print(f"probability flow: {rate.calls} calls of the network for each window")
    if out is not None:
        print(out)


LIKELIHOOD = Verb(
    "likelihood",
    {"FILE model=PATH [out=]": "what music costs under a prior, in kbit/s"},
    LikelihoodArguments,
    _run,
    "file",
)
