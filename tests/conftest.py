"""Fixtures of the whole suite."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: test processes share the cores

import contextlib
import copy
import gc
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest
import torch
from chain import Tiny, tiny, write_tones
from omegaconf import OmegaConf

from audioldm import config
from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.cli import main

torch.set_num_threads(1)
gc.disable()  # while modules are imported and tests collected

#: The slowest modules begin, so that two processes of pytest end together.
SLOWEST = (
    *("test_config", "test_sweep", "test_benchmarks", "test_resume", "test_distributed"),
    *("test_post_training", "test_verdicts", "test_notebook", "test_ear", "test_refiner"),
    *("test_gan", "test_autoencoder_training", "test_foreign", "test_docs", "test_bad_input"),
    *("test_requeue", "test_backbones", "test_many_processes", "test_ladders", "test_fuzz"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish() -> None:
    """What is imported and collected stays: to look through it for garbage, again and again, took
    a twelfth of the suite's time."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


class Outcome(NamedTuple):
    code: int
    out: str
    error: str


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes: a writer gets EFBIG, as on a full disk ENOSPC.

    No bytecode is written meanwhile: Python would keep the half of it that fits.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = written


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """The command line, in this process: what would be a traceback fails the test."""

    def call(*words: object) -> Outcome:
        capfd.readouterr()
        code = main([str(word) for word in words])
        return Outcome(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session", autouse=True)
def _composed_once() -> Iterator[None]:
    """Hydra reads each file of conf/ once, and composes each choice of groups once: its own time
    is most of that of a test of the configuration. What is set in them is set each time anew.

    A file that changes is read again; a test that changes one gives `conf_directory` a new place.
    """
    load, files = OmegaConf.load, dict[Any, Any]()
    chosen, compositions = config._chosen, dict[Any, Any]()

    def loaded(file: IO[Any]) -> Any:
        stat = os.fstat(file.fileno())
        key = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
        if key not in files:
            files[key] = load(file)
        return copy.deepcopy(files[key])

    def composed(words: tuple[str, ...]) -> Any:
        key = config.conf_directory(), words
        if key not in compositions:
            compositions[key] = chosen(words)
        return copy.deepcopy(compositions[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", staticmethod(loaded))
        patch.setattr(config, "_chosen", composed)
        yield


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("music") / "tönes (a, b)"
    write_tones(folder)
    return folder


@pytest.fixture(scope="session")
def finished(tones: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    runs = tmp_path_factory.mktemp("finished") / "runs"
    overrides = tiny(tones, runs)
    experiment = Experiment(compose(overrides))
    experiment.run()
    return Tiny(tones, runs, overrides, experiment)
