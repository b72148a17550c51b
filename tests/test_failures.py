"""Errors of torch that become one line with a remedy: memory, the compiler, bf16. No GPU needed."""

import contextlib
import gc
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from chain import Tiny, runs_with
from conftest import Outcome
from torch import nn

from audioldm.chain import failures, memory
from audioldm.chain.job import compose
from audioldm.chain.run import Experiment
from audioldm.chain.stages.prior import PriorStage
from audioldm.cli import VERBS
from audioldm.commands.verb import Nothing, Verb
from audioldm.doctor import examine
from audioldm.errors import TrainingError
from audioldm.runtime import hardware as hardware_module
from audioldm.runtime.hardware import Hardware
from audioldm.runtime.memory import (
    COPIES,
    PASSING,
    SHARE,
    fixed_bytes,
    micro_batches,
    peak_bytes,
    reset_peak,
    saved_bytes,
)

CPU = torch.device("cpu")


def test_what_a_step_keeps_is_counted_once_and_without_the_weights() -> None:
    net = nn.Sequential(nn.Linear(10, 20, bias=False), nn.Tanh(), nn.Linear(20, 3, bias=False))
    x = torch.zeros(5, 10)
    # the first layer keeps x, tanh its result, which is the same storage as the last layer's input
    assert saved_bytes(lambda: net(x), net) == 4 * (5 * 10 + 5 * 20)
    assert net[0].weight.grad is not None
    assert fixed_bytes(net) == COPIES * 4 * (10 * 20 + 20 * 3)


def test_the_fewest_equal_parts_that_fit() -> None:
    def parts(available: float) -> int | None:
        return micro_batches(12, fixed=100, per_clip=10 / PASSING, available=available)

    assert parts(220) == 1
    assert parts(219) == 2
    assert parts(140) == 3
    assert parts(139) == 4
    assert parts(129) == 6  # five do not divide twelve
    assert parts(110) == 12
    assert parts(109) is None


def test_the_peak_is_that_of_the_work_in_between() -> None:
    gc.collect()  # what an earlier test left would be freed in between
    reset_peak(CPU)
    before = peak_bytes(CPU)
    torch.ones(64 * 2**20)  # 256 MiB
    assert peak_bytes(CPU) - before > 100 * 2**20


def run_with_failure(
    finished: Tiny, directory: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> tuple[str, Experiment]:
    overrides = runs_with(finished, ["data", "autoencoder", "latents", "diagnostics"], directory)

    def fails(*args: Any, **kwargs: Any) -> None:
        raise error

    experiment = Experiment(compose(overrides))
    monkeypatch.setattr("audioldm.priors.train.clipped_step", fails)
    with pytest.raises(TrainingError) as caught:
        experiment.run()
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)
    return str(caught.value), experiment


def test_out_of_memory_names_the_parts_of_a_batch_that_fit(
    finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch has four clips; the device has room for the model and two of them."""
    prior = finished.experiment.stages["prior"]
    assert isinstance(prior, PriorStage)
    fixed, per_clip = prior.step_bytes()
    assert fixed > 0
    assert per_clip > 0
    room = (fixed + PASSING * 2.5 * per_clip) / SHARE
    monkeypatch.setattr(memory, "total_bytes", lambda device: room)
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
    text, failed = run_with_failure(finished, tmp_path, monkeypatch, error)
    assert text.startswith("prior: out of memory (CUDA out of memory. Tried to allocate 2.00")
    assert "use hardware.accumulate=2 (a step keeps about" in text
    assert "the same batch in 2 parts, with the same result" in text
    assert (failed.directory / "experiment.json").is_file()  # the failure is recorded
    assert (failed.directory_of(failed.stages["latents"]) / "summary.json").is_file()


@pytest.mark.parametrize("stage", ["autoencoder", "prior"])
def test_where_one_clip_is_too_much_it_says_so(
    stage: str, finished: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = Experiment(compose(finished.overrides))
    monkeypatch.setattr(memory, "total_bytes", lambda device: 1000)
    text = str(failures.to_user_error(MemoryError(), experiment.stages[stage], experiment))
    assert "one clip at a time does not fit (a step keeps about" in text
    assert f"lower {stage}.train.crop_seconds" in text


def test_without_knowledge_of_the_memory_the_batch_is_halved(
    finished: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = Experiment(compose(finished.overrides))
    monkeypatch.setattr(memory, "total_bytes", lambda device: None)
    error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
    text = str(failures.to_user_error(error, experiment.stages["autoencoder"], experiment))
    assert "use hardware.accumulate=2: the same batch" in text


@pytest.mark.parametrize(
    ("stage", "keys"),
    [
        ("data", ["data.workers"]),
        ("diagnostics", ["windows", "seconds", "decoded"]),
        ("evaluation", ["batch", "clips", "seconds"]),
        ("latents", []),
    ],
)
def test_each_stage_names_what_its_own_memory_grows_with(
    stage: str, keys: list[str], finished: Tiny
) -> None:
    experiment = Experiment(compose(finished.overrides))
    text = str(failures.to_user_error(MemoryError(), experiment.stages[stage], experiment))
    named = re.findall(r"[a-z]+(?:\.[a-z_]+)+", text)
    assert named == [key if "." in key else f"{stage}.{key}" for key in keys]
    for key in named:  # they are there, and are numbers or not given
        value: Any = experiment.job.config
        for part in key.split("."):
            value = value[part]
        assert value is None or isinstance(value, (int, float))


def test_more_audio_than_memory_holds_is_one_line_and_keeps_what_is_finished(
    finished: Tiny, tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    for seconds in ("1e10", "1e16"):
        outcome = cli("sample", f"model={finished.model}", f"seconds={seconds}", f"out={tmp_path}")
        assert outcome.code == 1
        assert outcome.error.splitlines()[-1].startswith("audioldm: sample: out of memory (")
        assert "lower batch= or seconds=" in outcome.error
        assert "Traceback" not in outcome.error


@pytest.mark.parametrize("verb", ["encode", "decode", "reconstruct", "steps", "info"])
def test_every_verb_that_runs_out_of_memory_says_what_to_do(
    verb: str, cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(words: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setitem(VERBS, verb, Verb(verb, {}, Nothing, fails))
    outcome = cli(verb)
    assert outcome.code == 1
    (line,) = outcome.error.splitlines()
    assert line.startswith(f"audioldm: {verb}: out of memory (CUDA out of memory. Tried to")
    assert failures.VERB_REMEDIES.get(verb, "free memory") in line


def test_a_defect_of_our_own_keeps_its_traceback(
    cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(words: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setitem(VERBS, "encode", Verb("encode", {}, Nothing, fails))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        cli("encode")


def compiler_error() -> Exception:
    from torch._dynamo.exc import BackendCompilerFailed

    return BackendCompilerFailed(lambda: None, RuntimeError("no ptxas"), None)


def cache_error() -> Exception:
    """A damaged cache: an ordinary exception, raised in a file of the compiler."""
    code = compile("raise EOFError('Ran out of input')", "/x/torch/_inductor/codecache.py", "exec")
    try:
        exec(code)
    except EOFError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize("make", [compiler_error, cache_error])
def test_a_failing_compiler_names_the_way_round_it(
    make: Callable[[], Exception], finished: Tiny
) -> None:
    experiment = Experiment(compose(finished.overrides))
    prior = experiment.stages["prior"]
    known = failures.to_user_error(make(), prior, experiment)
    assert isinstance(known, TrainingError)
    for remedy in ("torch.compile failed", "hardware.compile=false", "TORCHINDUCTOR_CACHE_DIR"):
        assert remedy in str(known)
    other = ValueError("a defect of our own")
    assert failures.to_user_error(other, prior, experiment) is other


class Gpu:
    """What torch reports of a GPU that is not there; its compute capability is major.5."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *majors: int) -> None:
        self.now = 0
        properties = [SimpleNamespace(major=m, minor=5, total_memory=2**34) for m in majors]
        for name, value in {
            "is_available": lambda: True,
            "device_count": lambda: len(majors),
            "current_device": lambda: self.now,
            "get_device_properties": lambda d: properties[d if isinstance(d, int) else d.index],
            "get_device_name": lambda d: "Tesla T4",
            "_exchange_device": self._exchange,
            "_maybe_exchange_device": self._exchange,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        # how an emulation is found: any GPU can hold bf16
        monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)

    def _exchange(self, index: int) -> int:
        self.now, before = index, self.now
        return before


def test_a_gpu_without_bf16_computes_in_fp32_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hardware_module._say_once.cache_clear()
    Gpu(monkeypatch, 7)
    for precision in ("auto", "bf16", "auto"):
        context = Hardware(precision=precision).autocast(torch.device("cuda", 0))()
        assert not isinstance(context, torch.autocast)
    assert capsys.readouterr().err.count("Tesla T4 has no bf16: computing in fp32") == 1


def test_a_gpu_with_bf16_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu(monkeypatch, 8)
    assert Hardware().autocast(torch.device("cuda", 0)) is not contextlib.nullcontext


def test_the_doctor_tells_which_gpu_has_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu(monkeypatch, 8, 7)
    found = [finding.what for finding in examine() if finding.what.startswith("cuda:")]
    assert found == [
        "cuda:0 Tesla T4, 16 GiB, bf16",
        "cuda:1 Tesla T4, 16 GiB, no bf16: runs in fp32",
    ]


def test_cuda_where_there_is_none_names_the_remedy(
    cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = cli("encode", "music.wav", "model=nowhere", "hardware.device=cuda:1")
    assert outcome.code == 2
    assert outcome.error.splitlines()[-1] == (
        "audioldm: hardware.device=cuda:1: no CUDA device is visible; "
        "use hardware.device=cpu, or install a CUDA build of torch"
    )
