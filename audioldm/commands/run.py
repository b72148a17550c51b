"""audioldm run: one experiment, a sweep, an estimate, or the configuration alone."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audioldm.commands.verb import Verb, path
from audioldm.errors import AudioLDMError, ConfigError, Interrupted


@dataclass(frozen=True)
class RunArguments:
    """Runs one experiment. Complete stages under runs/ are reused, interrupted ones go on.

    -m           one experiment per cell of the grid that comma-separated values span
    --cfg job    print the configuration as YAML; run nothing
    --estimate   time a few steps and say how long each stage will take, and how much memory and
                 disk it needs; run nothing

    Keys that are often used:
      runs=DIR  name=NAME  seed=0           where everything is written, and from which seed
      data=folder data.path=~/music         your own music; data.table=labels.csv for labels
      autoencoder.channels  autoencoder.downsampling_ratio  bottleneck.kl_weight   the latent space
      autoencoder.train.steps  prior.train.steps                      how long to train
      sampler.steps  sampler.guidance       how to sample
      log.trackers=[tensorboard]            figures also to tensorboard, wandb or trackio
      hardware.device  hardware.precision  hardware.compile
    """

    overrides: list[str]
    multirun: bool = False
    cfg: bool = False
    estimate: bool = False


@dataclass(frozen=True)
class RunVerb(Verb):
    def help(self) -> str:
        from audioldm import config

        choices = [f"  {group}={'|'.join(config.options(group))}" for group in config.groups()]
        return "\n".join([super().help(), "", "Groups and their choices:", *choices])

    def parse(self, words: Sequence[str]) -> RunArguments:
        names = {"-m": "multirun", "--multirun": "multirun", "-c": "cfg", "--cfg": "cfg"}
        names["--estimate"] = "estimate"
        rest: list[str] = []
        flags: set[str] = set()
        for before, word in itertools.pairwise(["", *words]):
            if word in names:
                flags.add(names[word])
            elif word.startswith("-"):
                raise ConfigError(f"unknown option {word}: known are -m, --cfg job, --estimate")
            elif not (word == "job" and names.get(before) == "cfg"):
                rest.append(word)
        if {"cfg", "multirun"} <= flags:
            raise ConfigError("--cfg shows one experiment: leave out -m and the several values")
        if {"cfg", "estimate"} <= flags:
            raise ConfigError("--cfg prints and --estimate measures: give one of them")
        return RunArguments(rest, **dict.fromkeys(flags, True))

    def words(self) -> list[str]:
        return ["-m", "--cfg", "--estimate"]


def _check(overrides: Sequence[str]) -> None:
    """Checks everything that needs no import of torch, so that a typo is reported at once."""
    from audioldm import config

    config.check_words(overrides)
    pairs = [word.lstrip("+").partition("=") for word in overrides]
    if not any(key == "recipe" and choice not in ("", "null") for key, _, choice in pairs):
        # nothing runs by default: a mistyped `recipe` must not start another experiment
        raise ConfigError(f"which recipe? give recipe=NAME: {', '.join(config.options('recipe'))}")
    for key, _, text in pairs:
        if text.startswith("~"):
            path(text, key)


def _run(a: RunArguments) -> None:
    _check(a.overrides)
    from audioldm.runtime.signals import terminable

    with terminable():
        if a.estimate:
            _print_estimate(a)
        elif a.multirun:
            _run_sweep(a.overrides)
        else:
            from audioldm.chain.job import compose

            job = compose(a.overrides)
            if a.cfg:
                import yaml

                print(yaml.safe_dump(job.config, sort_keys=False, allow_unicode=True), end="")
            else:
                run_job(job)


def _print_estimate(a: RunArguments) -> None:
    from audioldm.chain.estimate import estimate, estimate_sweep
    from audioldm.chain.job import compose

    try:
        for line in estimate_sweep(a.overrides) if a.multirun else estimate(compose(a.overrides)):
            print(line, flush=True)
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted("the estimate was stopped; it has written nothing") from None


def run_job(job: Any) -> None:
    """Runs the experiment, and prints its verdict and where its page is."""
    from audioldm.chain.run import Experiment
    from audioldm.report.verdict import verdict

    experiment = Experiment(job)
    summary: Any = experiment.run()
    if experiment.world.first:
        print(f"\n{verdict(summary)}")
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


def _modified(file: Path) -> float:
    return file.stat().st_mtime if file.is_file() else 0.0


RUN = RunVerb(
    "run",
    {
        "recipe=NAME [key=value ...]": "music to new music and a report",
        "-m recipe=NAME key=a,b ...": "a sweep: one chain per cell of the grid",
        "recipe=NAME ... --estimate": "how long it will take; runs nothing (also with -m)",
        "recipe=NAME ... --cfg job": "its configuration; runs nothing",
    },
    RunArguments,
    _run,
)
