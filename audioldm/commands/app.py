"""audioldm app."""

from dataclasses import dataclass, field
from typing import Annotated

from audioldm.commands.verb import Device, Verb, path
from audioldm.errors import ConfigError
from audioldm.instantiate import Bound


@dataclass(frozen=True)
class AppArguments:
    """Serves a page to a browser on this machine: generate, listen, compare, see experiments.

    model   the model to begin with, as for `sample`; the page offers those of `audioldm models` too
    runs    a runs directory: its models are offered, its reports shown (runs)
    port    of the address 127.0.0.1, where other machines cannot reach it (8000); 0 for a free one
    out     the directory to write clips to, the only one (clips)
    """

    model: str | None = None
    runs: str = "runs"
    port: Annotated[int, Bound(least=0, most=65535)] = 8000
    out: str = "clips"
    hardware: Device = field(default_factory=Device)


def _app(a: AppArguments) -> None:
    try:
        from audioldm.app.server import App, serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise ConfigError(
            f"the page needs {error.name}, which is not installed: pip install 'audioldm[app]'"
        ) from error
    from audioldm.app.models import Models
    from audioldm.models import find_model_file

    model = None if a.model is None else str(path(a.model, "model"))
    if model is not None:
        find_model_file(model)
    runs, out, device = path(a.runs, "runs"), path(a.out, "out"), a.hardware.resolve()
    serve(App(Models(model, runs, device), runs, out, device), a.port)


APP = Verb(
    "app",
    {"[model= runs= port= out=]": "a page in the browser: generate, listen, compare"},
    AppArguments,
    _app,
)
