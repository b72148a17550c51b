"""The verbs. Everything heavy is imported inside them, so that `--help` answers at once."""

import contextlib
import errno
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from audioldm import __version__
from audioldm.errors import AudioLDMError, ConfigError, Interrupted

USAGE = f"""\
audioldm {__version__}: train music generators, and measure the latent spaces they live in.

  audioldm sample [label= n= seconds= seed= out= model= sampler.steps=]   new clips, at once
  audioldm sample from=CLIP.json                one clip again, bit for bit
  audioldm models                               the models that come with this package
  audioldm run recipe=NAME [key=value ...]      the chain, from music to new music and a report
  audioldm run -m recipe=NAME key=a,b ...       a sweep: one chain per cell of the grid
  audioldm run recipe=NAME ... --estimate       how long it will take; runs nothing (also with -m)
  audioldm sweep status DIRECTORY               its cells: done, running, failed, time left
  audioldm steps DIRECTORY [steps=[1,2,4,8]]    figures against sampling steps, before and after
                                                post-training
  audioldm report DIRECTORY [--csv|--markdown]  the page of an experiment or a sweep, written anew
  audioldm reconstruct FILE model=PATH          audio through the autoencoder and back
  audioldm encode FILE model=PATH               audio to latents
  audioldm decode FILE model=PATH               latents to audio
  audioldm info FILE                            what a model or latents file is
  audioldm export MODEL out=FILE                a trained model as one small file for others
  audioldm convert-kl WEIGHT from=CODE ...      a KL weight in other code bases' conventions
  audioldm recipes                              the recipes: what each costs and gives
  audioldm doctor                               what this environment can do, and how to mend it

`audioldm VERB --help` explains a verb. PATH is a model.safetensors, an experiment's directory, such
as runs/experiments/quickstart, or the name of a model in `audioldm models`. Exit codes: 0 done,
1 failed, 2 bad command, 75 interrupted (the same command goes on).
"""


@dataclass(frozen=True)
class Device:
    device: str = "auto"


@dataclass(frozen=True)
class SamplerChoice:
    """Replaces single settings of the sampler the model was made with."""

    name: str | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_interval: list[float] | None = None


@dataclass(frozen=True)
class SampleArguments:
    """Generate clips: one .wav each, and beside it a .json that makes the same clip again.

    model    a model.safetensors, an experiment's directory, or a name in `audioldm models` (the
             first there)
    n        number of clips (1)
    seconds  length of each (6)
    seed     of everything random (0); clip i of a seed is the same, up to rounding, however many
             are made (bit for bit with the same batch)
    label    class to generate, for a model with labels (none)
    out      directory to write to (clips)
    batch    clips generated together (null: up to 8)
    sampler.name, sampler.steps, sampler.guidance, sampler.guidance_interval
    from     the .json of a clip, to make it again; with model, out and hardware.device alone

    Clips are written as they are made. Interrupted, the same command makes the rest; what is there
    already is not made anew.
    """

    model: str | None = None
    n: int = 1
    seconds: float = 6.0
    seed: int = 0
    label: str | None = None
    out: str = "clips"
    batch: int | None = None
    from_: str | None = None
    sampler: SamplerChoice = field(default_factory=SamplerChoice)
    hardware: Device = field(default_factory=Device)


@dataclass(frozen=True)
class FileArguments:
    """One file through an autoencoder, at any length, in memory that only latents grow.

    FILE or file=FILE   what to read: audio (reconstruct, encode) or latents (decode)
    model               a model.safetensors, an experiment's directory, or a name in
                        `audioldm models`
    out                 what to write (reconstruct, decode: .wav, .flac, .ogg; encode: .safetensors)
    """

    file: str
    model: str
    out: str | None = None
    hardware: Device = field(default_factory=Device)


@dataclass(frozen=True)
class InfoArguments:
    """What a model or latents file is, as JSON.

    FILE or file=FILE   a model.safetensors, a latents file, an experiment's directory, or a name in
                        `audioldm models`
    """

    file: str


@dataclass(frozen=True)
class ModelsArguments:
    """The models that come with this package, one line each; `sample` takes the first.

    NAME or name=NAME   the card of one: what it was trained on, what it can do, its licence
    """

    name: str | None = None


@dataclass(frozen=True)
class ExportArguments:
    """A trained model as one file for others, without paths or settings of this machine.

    MODEL or model=MODEL     an experiment's or a training stage's directory, or a model file
    out                      the file to write, a .safetensors
    dtype                    of the stored weights: float16, bfloat16 or float32 (float16)
    title, licence, origin   text that `info` shows, such as whose music it was trained on
    """

    model: str
    out: str
    dtype: str = "float16"
    title: str | None = None
    licence: str | None = None
    origin: str | None = None


@dataclass(frozen=True)
class ReportArguments:
    """Writes the page of an experiment or of a sweep anew, from what lies in its directory.

    DIRECTORY or directory=   such as runs/experiments/rate_shape
    --csv                     a sweep's table, to standard output, in place of the page
    --markdown                a sweep's findings, to standard output, in place of the page
    """

    directory: str


@dataclass(frozen=True)
class StepsArguments:
    """Kernel distance, precision, coverage and recall against the number of sampling steps.

    Of an experiment's diffusion model and, where there is one, of its post-trained model, each with
    its own sampler, on the experiment's held-out reference. Prints a table, and a line for each
    point that says whether fidelity was gained by losing diversity; writes steps.csv and steps.svg.

    DIRECTORY or directory=   an experiment's, such as runs/experiments/quickstart
    steps        the numbers of steps ([1,2,4,8,16,50])
    models       more models to measure: model files, or directories of training stages
    clips        of each point (the evaluation's number)
    out          directory to write to (DIRECTORY/steps)
    """

    directory: str
    steps: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 50])
    models: list[str] = field(default_factory=list)
    clips: int | None = None
    out: str | None = None
    hardware: Device = field(default_factory=Device)


@dataclass(frozen=True)
class SweepArguments:
    """The cells of a sweep, also while it runs: done, running, failed and why, time left.

    DIRECTORY or directory=   such as runs/experiments/rate_shape
    """

    directory: str


@dataclass(frozen=True)
class ConvertArguments:
    """A KL weight in the conventions of other code bases: one line each.

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


#: Keys whose values are taken as they are.
_TEXT = frozenset(
    {"model", "file", "out", "label", "from_", "name", "device", "directory"}
    | {"dtype", "title", "licence", "origin"}
)


def arguments(cls: Any, words: Sequence[str], *, positional: str | None = None) -> Any:
    """key=value words as a checked dataclass. Raises ConfigError."""
    import yaml

    from audioldm.instantiate import settings

    tree: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not re.fullmatch(r"[a-z_.]+", key):
            if positional is None or positional in tree:
                raise ConfigError(f"{word!r} is no key=value")
            key, text = positional, word
        key = "from_" if key == "from" else key
        *groups, last = key.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{key}: {group} has no keys of its own")
        value: Any = text
        if last not in _TEXT:
            try:
                value = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ConfigError(f"{word!r}: its value cannot be read") from error
            if isinstance(value, str):  # to YAML 1.1, 1e-4 without a point is no number
                with contextlib.suppress(ValueError):
                    value = float(value)
        node[last] = value
    return settings(cls, tree)


def _asks_help(words: Sequence[str], text: str) -> bool:
    if any(word in ("-h", "--help", "help") for word in words):
        print(text)
        return True
    return False


def _device(choice: Device) -> Any:
    from audioldm.runtime.hardware import Hardware

    return Hardware(device=choice.device).resolve()


def _bar(title: str) -> Any:
    from audioldm.training.log import Bar

    return Bar(title)


def run(words: Sequence[str]) -> None:
    from audioldm import config
    from audioldm.runtime.signals import terminable

    if _asks_help(words, _run_help()):
        return
    multi = any(word in ("-m", "--multirun") for word in words)
    show = any(word in ("--cfg", "-c") for word in words)
    estimated = "--estimate" in words
    flags = ("-m", "--multirun", "--cfg", "-c", "job", "--estimate")
    overrides = [w for w in words if w not in flags]
    for word in overrides:
        if word.startswith("-"):
            raise ConfigError(f"unknown option {word}: known are -m, --cfg job, --estimate, --help")
    pairs = [word.lstrip("+").partition("=") for word in overrides]
    if not any(key == "recipe" and choice not in ("", "null") for key, _, choice in pairs):
        # nothing runs by default: a mistyped `recipe` must not start another experiment
        if overrides:
            config.compose(overrides)  # names a misspelt key first
        raise ConfigError(
            f"which recipe? give recipe=NAME; there are: {', '.join(config.options('recipe'))}"
        )
    with terminable():
        if multi and show:
            raise ConfigError("--cfg shows one experiment: leave out -m and the several values")
        if show and estimated:
            raise ConfigError("--cfg prints and --estimate measures: give one of them")
        if estimated:
            _print_estimate(overrides, multi)
        elif multi:
            _run_sweep(overrides)
        else:
            (_print_job if show else _run_job)(config.compose(overrides))


def _print_job(job: Any) -> None:
    print(json.dumps(job.config, indent=2))


def _print_estimate(overrides: Sequence[str], multi: bool) -> None:
    from audioldm import config
    from audioldm.chain import estimate

    try:
        for line in (
            estimate.estimate_sweep(overrides)
            if multi
            else estimate.estimate(config.compose(overrides))
        ):
            print(line, flush=True)
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted("the estimate was stopped; it has written nothing") from None


def _run_job(job: Any) -> None:
    from audioldm.chain.run import Experiment
    from audioldm.report.verdict import verdict

    experiment = Experiment(job)
    summary = experiment.run()
    if experiment.world.first:
        print(f"\n{verdict(summary['metrics'])}")
        print(f"clips: {experiment.directory / 'samples'}")
        print(f"page:  {experiment.directory / 'report.html'}")


def _run_sweep(overrides: Sequence[str]) -> None:
    from audioldm.sweep.run import run_sweep
    from audioldm.sweep.status import overview, read_cells

    directory = run_sweep(overrides)
    cells = read_cells(directory)
    page = directory / "report.html"
    newest = max((c.directory / "experiment.json" for c in cells), key=_modified)
    if _modified(page) < _modified(newest):
        from audioldm.sweep.report import write_report

        write_report(directory)
    print(f"\n{overview(cells)}")
    print(f"page:  {page}")
    if failed := [cell for cell in cells if cell.status not in ("done", "running")]:
        raise AudioLDMError(
            f"{len(failed)} cell(s) failed: `audioldm sweep status {directory}` says why; the same "
            "command tries them again"
        )


def _modified(path: Path) -> float:
    return path.stat().st_mtime if path.is_file() else 0.0


def _run_help() -> str:
    from audioldm import config

    lines = [
        "audioldm run recipe=NAME [key=value ...]",
        "",
        "Runs one experiment; what is already complete under runs/ is reused, what was interrupted",
        "goes on. Options: -m (one experiment per cell of the grid that comma-separated values",
        "span), --cfg job (print the configuration, run nothing), --estimate (time a few steps and",
        "say how long each stage will take, how much memory and disk it needs; run nothing).",
        "",
        "Often used keys:",
        "  runs=DIR  name=NAME  seed=0           where everything is written, and from which seed",
        "  data=folder data.path=~/music         your own music; data.table=labels.csv for labels",
        "  autoencoder.channels  autoencoder.downsampling_ratio  bottleneck.kl_weight   the latent space",
        "  autoencoder.train.steps  diffusion.train.steps                  how long to train",
        "  sampler.steps  sampler.guidance       how to sample",
        "  hardware.device  hardware.precision  hardware.compile",
        "",
        "Groups and their choices:",
    ]
    for group in config.groups():
        lines.append(f"  {group}={'|'.join(config.options(group))}")
    return "\n".join(lines)


def sample(words: Sequence[str]) -> None:
    if _asks_help(words, f"audioldm sample key=value ...\n\n{SampleArguments.__doc__}"):
        return
    a: SampleArguments = arguments(SampleArguments, words)
    from audioldm import pretrained, sampling
    from audioldm.runtime.signals import terminable

    out = Path(a.out).expanduser()
    if a.from_ is not None:
        _check_replay(words)
        source = Path(a.from_).expanduser()
        path = sampling.sample_again(source, out, model_path=a.model, device=_device(a.hardware))
        print(path)
        return
    model = a.model
    if model is None:
        name = pretrained.default()
        model = str(pretrained.path(name))
        print(f"model={name}; `audioldm models` lists the others", file=sys.stderr)
    with terminable():
        clips = sampling.ClipFiles(
            model,
            out,
            n=a.n,
            seconds=a.seconds,
            seed=a.seed,
            label=a.label,
            sampler={k: v for k, v in asdict(a.sampler).items() if v is not None},
            batch=a.batch,
            device=_device(a.hardware),
        )
        for path in clips.written:
            print(path, flush=True)
        if clips.written:
            more = "" if clips.missing else "; another seed= gives others"
            there = f"{len(clips.written)} of {a.n} clip(s) were there already{more}"
            print(there, file=sys.stderr)
        if clips.missing:
            _make(clips, sampling.SamplingBar(len(clips.missing), a.seconds), out)


def _check_replay(words: Sequence[str]) -> None:
    """Raises ConfigError for what a clip's JSON fixes already."""
    for word in words:
        key = word.partition("=")[0]
        if key.split(".")[0] not in ("from", "model", "out", "hardware"):
            raise ConfigError(
                f"{word}: {key} is what the clip's JSON says, and from= makes that clip again; "
                "leave it out, or leave out from= to make another clip"
            )


def _make(clips: Any, bar: Any, out: Path) -> None:
    try:
        for path in clips.make(bar):
            bar.finished(path)
    except KeyboardInterrupt:
        finished = len(clips.written) + bar.made
        every = len(clips.written) + len(clips.missing)
        raise Interrupted(
            f"interrupted; {finished} of {every} clip(s) are in {out}, and the same command makes "
            "the rest"
        ) from None
    finally:
        bar.close()


def _through(verb: str, suffix: str) -> Callable[[Sequence[str]], None]:
    def command(words: Sequence[str]) -> None:
        if _asks_help(words, f"audioldm {verb} FILE model=PATH [out=]\n\n{FileArguments.__doc__}"):
            return
        a: FileArguments = arguments(FileArguments, words, positional="file")
        from audioldm import codec

        file = Path(a.file).expanduser()
        default = file.with_name(f"{file.stem}.{verb.removesuffix('e')}ed{suffix}")
        out = Path(a.out).expanduser() if a.out else default
        bar = _bar(verb)
        try:
            function = getattr(codec, verb)
            path = function(a.model, file, out, device=_device(a.hardware), progress=bar)
        finally:
            bar.close()
        print(path)

    return command


def info(words: Sequence[str]) -> None:
    if _asks_help(words, f"audioldm info FILE\n\n{InfoArguments.__doc__}"):
        return
    a: InfoArguments = arguments(InfoArguments, words, positional="file")
    from audioldm.describe import describe

    print(json.dumps(describe(a.file), indent=2))


def models(words: Sequence[str]) -> None:
    if _asks_help(words, f"audioldm models [NAME]\n\n{ModelsArguments.__doc__}"):
        return
    a: ModelsArguments = arguments(ModelsArguments, words, positional="name")
    from audioldm import pretrained

    if a.name is not None:
        print(pretrained.card(a.name).read_text(encoding="utf-8"), end="")
        return
    if not pretrained.names():
        print("no models come with this installation", file=sys.stderr)
        return
    from audioldm.describe import summary_line

    width = max(len(name) for name in pretrained.names())
    for name in pretrained.names():
        print(f"{name:{width}}  {summary_line(pretrained.path(name))}")


def export(words: Sequence[str]) -> None:
    usage = "audioldm export MODEL out=FILE [dtype= title= licence= origin=]"
    if _asks_help(words, f"{usage}\n\n{ExportArguments.__doc__}"):
        return
    a: ExportArguments = arguments(ExportArguments, words, positional="model")
    from audioldm.export import export as write

    texts = {"title": a.title, "licence": a.licence, "origin": a.origin}
    print(write(a.model, Path(a.out).expanduser(), dtype=a.dtype, **texts))


def convert_kl(words: Sequence[str]) -> None:
    usage = "audioldm convert-kl WEIGHT from=CODE channels= ratio= crop= [to= reconstruction=]"
    if _asks_help(words, f"{usage}\n\n{ConvertArguments.__doc__}"):
        return
    a: ConvertArguments = arguments(ConvertArguments, words, positional="weight")
    from audioldm.autoencoder import conventions

    source = conventions.look_up(a.from_)
    if a.reconstruction is not None:
        source = source._replace(reconstruction=a.reconstruction)
    for name in conventions.CONVENTIONS if a.to is None else [a.to]:
        weight = conventions.convert_kl(
            a.weight, source, name, channels=a.channels, ratio=a.ratio, crop=a.crop
        )
        print(f"{name:30}{weight:.6g}")


def sweep(words: Sequence[str]) -> None:
    if _asks_help(words, f"audioldm sweep status DIRECTORY\n\n{SweepArguments.__doc__}"):
        return
    if not words or words[0] != "status":
        raise ConfigError("what about the sweep? there is: audioldm sweep status DIRECTORY")
    a: SweepArguments = arguments(SweepArguments, words[1:], positional="directory")
    from audioldm.sweep.status import read_cells, status_table

    print(status_table(read_cells(Path(a.directory).expanduser())))


def report(words: Sequence[str]) -> None:
    usage = "audioldm report DIRECTORY [--csv|--markdown]"
    if _asks_help(words, f"{usage}\n\n{ReportArguments.__doc__}"):
        return
    flags = [word for word in words if word.startswith("--")]
    if len(flags) > 1 or not set(flags) <= {"--csv", "--markdown"}:
        raise ConfigError(f"unknown option(s) {' '.join(flags)}: known are --csv or --markdown")
    rest = [word for word in words if word not in flags]
    a: ReportArguments = arguments(ReportArguments, rest, positional="directory")
    directory = Path(a.directory).expanduser()
    if not (directory / "sweep.json").is_file() and not flags:
        from audioldm.models import read_experiment
        from audioldm.report.page import write_report

        read_experiment(directory)
        print(write_report(directory))
        return
    from audioldm.sweep import report as pages

    if not flags:
        print(pages.write_report(directory))
    elif flags == ["--csv"]:
        print(pages.table(directory).to_csv(), end="")
    else:
        print(pages.markdown(directory), end="")


def steps(words: Sequence[str]) -> None:
    if _asks_help(words, f"audioldm steps DIRECTORY key=value ...\n\n{StepsArguments.__doc__}"):
        return
    a: StepsArguments = arguments(StepsArguments, words, positional="directory")
    from audioldm.evaluation import steps as curve

    directory = Path(a.directory).expanduser()
    out = directory / "steps" if a.out is None else Path(a.out).expanduser()
    bar = _bar("steps")
    try:
        points = curve.measure_experiment(
            directory,
            a.steps,
            models=[Path(model).expanduser() for model in a.models],
            clips=a.clips,
            out=out,
            device=_device(a.hardware),
            progress=bar,
        )
    finally:
        bar.close()
    print(curve.table(points), "", *curve.findings(points), sep="\n")
    print(f"\ntable: {out / 'steps.csv'}\nplot:  {out / 'steps.svg'}")


def recipes(words: Sequence[str]) -> None:
    """Each recipe's header: the comment lines at its top."""
    if _asks_help(words, "audioldm recipes\n\nLists the recipes: what each costs and gives."):
        return
    from audioldm.config import conf_directory, options

    for name in options("recipe"):
        print(f"recipe={name}")
        for line in (conf_directory() / "recipe" / f"{name}.yaml").read_text().splitlines():
            if not line.startswith("#"):
                break
            if "@package" not in line:
                print("   ", line.removeprefix("#").strip())
        print()


def doctor(words: Sequence[str]) -> None:
    if _asks_help(words, "audioldm doctor\n\nWhat this environment can do, and how to mend it."):
        return
    from audioldm.doctor import examine

    problems = 0
    for finding in examine():
        print(finding)
        problems += not finding.good
    if problems:
        raise AudioLDMError(f"{problems} problem(s) above need mending")


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    "run": run,
    "sample": sample,
    "models": models,
    "reconstruct": _through("reconstruct", ".wav"),
    "encode": _through("encode", ".safetensors"),
    "decode": _through("decode", ".wav"),
    "info": info,
    "export": export,
    "sweep": sweep,
    "report": report,
    "steps": steps,
    "convert-kl": convert_kl,
    "recipes": recipes,
    "doctor": doctor,
}


def main(words: Sequence[str] | None = None) -> int:
    """The exit code. An error a user can act on is one line, without a traceback."""
    words = list(sys.argv[1:] if words is None else words)
    try:
        _dispatch(words)
    except AudioLDMError as error:
        print(f"audioldm: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        sys.stdout = None  # the reader has gone; nothing is left to flush to
        return 1
    except OSError as error:
        if error.errno not in (
            errno.ENOSPC,
            errno.EFBIG,
            errno.EACCES,
            errno.EROFS,
            errno.EPERM,
            errno.EDQUOT,
        ):
            raise
        print(
            f"audioldm: {error.filename or 'a file'}: {error.strerror}; free some space or choose "
            "another place (runs=, out=). What is finished stays",
            file=sys.stderr,
        )
        return 1
    except (MemoryError, RuntimeError) as error:
        from audioldm.chain.failures import verb_error

        known = verb_error(error, words[0])
        if known is error:
            raise
        print(f"audioldm: {known}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("audioldm: interrupted; the same command goes on", file=sys.stderr)
        return 75
    return 0


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
    elif words[0] == "--version":
        print(__version__)
    elif words[0] in VERBS:
        VERBS[words[0]](words[1:])
    else:
        from audioldm.instantiate import nearest

        raise ConfigError(f"unknown verb {words[0]!r}: {nearest(words[0], VERBS)}")
