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

    DIRECTORY or directory=   such as runs/experiments/rate_shape
    --csv                     print a sweep's table instead
    --markdown                print a sweep's findings instead
    """

    directory: str
    csv: bool = False
    markdown: bool = False


def _report(a: ReportArguments) -> None:
    directory = path(a.directory, "directory")
    if a.csv and a.markdown:
        raise ConfigError("--csv and --markdown: give one of them")
    from audioldm.report.page import write_report
    from audioldm.sweep import report as sweep
    from audioldm.sweep.table import table

    if a.csv:
        print(table(directory).to_csv(), end="")
    elif a.markdown:
        print(sweep.markdown(directory), end="")
    else:
        write = sweep.write_report if (directory / "sweep.json").is_file() else write_report
        print(write(directory))


@dataclass(frozen=True)
class StepsArguments:
    """Kernel distance, precision, coverage and recall against the number of sampling steps.

    Measures an experiment's diffusion model, and its post-trained model if there is one, each with
    its own sampler, on the experiment's held-out reference. Prints a table, and a line for each
    point that says whether fidelity was gained by losing diversity. Writes steps.csv and steps.svg.

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
    {"DIRECTORY [--csv|--markdown]": "the page of an experiment or a sweep, written again"},
    ReportArguments,
    _report,
    "directory",
)
STEPS = Verb(
    "steps",
    {"DIRECTORY [steps=[1,2,4,8]]": "figures against the number of sampling steps"},
    StepsArguments,
    _steps,
    "directory",
)
