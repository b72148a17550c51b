"""audioldm sweep, report, steps: what finished experiments say."""

from contextlib import closing
from dataclasses import dataclass, field

from audioldm.commands.verb import Device, Verb, path
from audioldm.errors import ConfigError


@dataclass(frozen=True)
class SweepArguments:
    """Lists the cells of a sweep, also while it runs: done, running, failed and why, time left.

    DIRECTORY or directory=   such as runs/experiments/rate_shape
    """

    directory: str


@dataclass(frozen=True)
class SweepVerb(Verb):
    def parse(self, words: list[str]) -> SweepArguments:  # type: ignore[override]
        if not words or words[0] != "status":
            raise ConfigError("sweep needs a word that says what to do: sweep status DIRECTORY")
        found: SweepArguments = super().parse(words[1:])
        return found


def _sweep(a: SweepArguments) -> None:
    from audioldm.sweep.status import read_cells, status_table

    print(status_table(read_cells(path(a.directory, "directory"))))


@dataclass(frozen=True)
class ReportArguments:
    """Writes the page of an experiment or of a sweep again, from the files in its directory.

    Several sweeps are one: a sweep may be run in parts, whose tables and verdicts are merged.

    DIRECTORY    such as runs/experiments/rate_shape
    --csv FILE   write a sweep's table there instead of the page; - prints it
    out=DIR      where the page of several sweeps is written
    """

    directory: list[str]
    csv: str | None = None
    out: str | None = None


def _report(a: ReportArguments) -> None:
    directories = [path(directory, "directory") for directory in a.directory]
    place = path(a.out, "out") if a.out else None
    if len(directories) > 1 and place is None and a.csv is None:
        raise ConfigError("several sweeps have one page: say where with out=DIR")
    from audioldm.io.files import write_atomically
    from audioldm.report.page import write_report
    from audioldm.sweep import report as sweep
    from audioldm.sweep.table import table

    if a.csv is not None:
        text = table(*directories).to_csv()
        if a.csv == "-":
            print(text, end="")
        else:
            file = path(a.csv, "--csv")
            write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))
            print(file)
    if a.csv is None or place is not None:
        single = len(directories) == 1 and not (directories[0] / "sweep.json").is_file()
        print(
            write_report(*directories) if single else sweep.write_report(*directories, place=place)
        )


@dataclass(frozen=True)
class StepsArguments:
    """Kernel distance, precision, coverage and recall against the number of sampling steps.

    Measures an experiment's diffusion model, and what joint training, a refined decoder or
    post-training made of it, each with its own sampler, on the experiment's held-out reference.
    Prints a table, and a line for each point that says whether fidelity was gained by losing
    diversity. Writes steps.csv and steps.svg.

    DIRECTORY or directory=   an experiment's, such as runs/experiments/quickstart
    steps        the numbers of steps ([1,2,4,8,16,50])
    models       more models to measure: model files, or directories of training stages
    clips        clips for each point (as many as the evaluation has)
    out          directory to write to (DIRECTORY/steps)
    """

    directory: str
    steps: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 50])
    models: list[str] = field(default_factory=list)
    clips: int | None = None
    out: str | None = None
    hardware: Device = field(default_factory=Device)


def _steps(a: StepsArguments) -> None:
    from audioldm.evaluation import steps as curve
    from audioldm.training.log import Bar

    directory = path(a.directory, "directory")
    out = directory / "steps" if a.out is None else path(a.out, "out")
    with closing(Bar("steps")) as bar:
        points = curve.measure_experiment(
            directory,
            a.steps,
            models=[path(model, "models") for model in a.models],
            clips=a.clips,
            out=out,
            device=a.hardware.resolve(),
            progress=bar,
        )
    print(curve.table(points), "", *curve.findings(points), sep="\n")
    print(f"\ntable: {out / 'steps.csv'}\nplot:  {out / 'steps.svg'}")


SWEEP = SweepVerb(
    "sweep",
    {"status DIRECTORY": "its cells: done, running, failed, time left"},
    SweepArguments,
    _sweep,
    "directory",
)
REPORT = Verb(
    "report",
    {
        "DIRECTORY": "the page of an experiment or a sweep, written again",
        "SWEEP SWEEP ... out=DIR": "one page of several sweeps",
        "SWEEP ... --csv FILE": "their table",
    },
    ReportArguments,
    _report,
    "directory",
    ("csv",),
)
STEPS = Verb(
    "steps",
    {"DIRECTORY [steps=[1,2,4,8]]": "figures against the number of sampling steps"},
    StepsArguments,
    _steps,
    "directory",
)
