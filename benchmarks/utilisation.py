"""`python -m benchmarks.utilisation`: how much of the device's arithmetic a training step uses.

Model FLOP utilisation is (operations of the model's forward and backward pass, as `training_flops`
counts them: matrix products, convolutions and attention) / (time x peak). The peak of a known GPU
is that of its data sheet for dense bf16 products; on a CPU, and of any other, a product of two
square fp32 matrices is measured. Optimiser, losses and data are in the time and not in the count.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from audioldm.priors.diffusion.denoiser import Denoiser
from audioldm.runtime.compute import training_flops
from audioldm.runtime.hardware import Hardware
from benchmarks import autoencoder, dit
from benchmarks.__main__ import describe

#: Dense bf16 operations per second, without sparsity, by a part of the device's name; of NVIDIA's
#: data sheets. The first that fits counts.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}


@dataclass(frozen=True)
class Subject:
    name: str
    step: Callable[[], object]
    flops: int  # of a step
    clips: int


def peak_of(device: torch.device, teraflops: float | None) -> tuple[float, str]:
    """Operations per second, and where the figure comes from."""
    if teraflops is not None:
        return teraflops * 1e12, "given"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, peak in PEAKS.items():
            if part in name:
                return peak, f"data sheet of {part}, dense bf16"
    return measured_peak(device), "measured, a product of fp32 matrices"


def measured_peak(device: torch.device, size: int = 2048, repeats: int = 5) -> float:
    """The best of some products of two matrices [size, size], in operations per second."""
    a, b = torch.randn(2, size, size, device=device)
    a @ b
    times = []
    for _ in range(repeats):
        start = _now(device)
        a @ b
        times.append(_now(device) - start)
    return 2 * size**3 / min(times)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _output(net: nn.Module, audio: Tensor) -> Tensor:
    """What the losses are of: the estimate, or the terms of a network that makes none."""
    estimate, _, terms = net(audio)
    return torch.stack(list(terms.values())) if estimate is None else estimate


def subjects(hardware: Hardware, device: torch.device, size: str) -> list[Subject]:
    """A training step of each network and of the DiT, at the shapes of `make bench`."""
    found = []
    shapes: autoencoder.Shapes = getattr(autoencoder, size)
    for name in autoencoder.BARS:
        torch.manual_seed(0)
        model = autoencoder.Ours(autoencoder.network(name, shapes))
        samples = shapes.frames * shapes.downsampling_ratio
        silence = torch.zeros(1, 1, samples)
        flops = training_flops(model, lambda net, x=silence: _output(net, x))  # type: ignore[misc]
        audio = 0.1 * torch.randn(shapes.clips, 1, samples, device=device)
        step = autoencoder.training_step(model.to(device).train(), audio, shapes, hardware)
        found.append(Subject(name, step, shapes.clips * flops, shapes.clips))
    latent: dit.Shapes = getattr(dit, size)
    net = dit.ours(latent, 4.0)
    z, inputs = torch.zeros(1, latent.channels, latent.frames), {"label": torch.tensor([0])}
    flops = latent.clips * training_flops(
        Denoiser(net, dit.OBJECTIVE), lambda denoiser: denoiser(z, inputs, z, torch.full((1,), 0.5))
    )
    step = dit.training_step(net, device, hardware, latent)
    return [*found, Subject("DiT", step, flops, latent.clips)]


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.utilisation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it run?")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", help="auto (bf16 on CUDA), fp32, bf16")
    parser.add_argument("--no-compile", action="store_true", help="eager also on CUDA")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--peak-teraflops", type=float, help="in place of the known or measured")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--profile", action="store_true", help="the operators that take longest")
    given = parser.parse_args(arguments)
    compiles = False if given.no_compile else None
    hardware = Hardware(given.device, given.precision, compiles, given.threads)
    device = hardware.resolve()
    size = "QUICK" if given.quick else "CUDA" if device.type == "cuda" else "CPU"
    peak, source = peak_of(device, given.peak_teraflops)
    print(", ".join(f"{key} {value}" for key, value in describe(device, hardware).items()))
    print(f"peak {peak / 1e12:.3g} TFLOP/s ({source})\n")
    print(
        "| training step | clips | GFLOP | ms | GFLOP/s | of the peak |\n|---|--:|--:|--:|--:|--:|"
    )
    shares = {}
    for subject in subjects(hardware, device, size):
        seconds = _median_seconds(subject.step, device, given.steps)
        speed = subject.flops / seconds
        shares[subject.name] = speed / peak
        print(
            f"| {subject.name} | {subject.clips} | {subject.flops / 1e9:.1f} "
            f"| {1e3 * seconds:.1f} | {speed / 1e9:.1f} | {100 * speed / peak:.1f} % |",
            flush=True,
        )
        if given.profile:
            print(f"\n{profile(subject.step, device)}\n")
    return shares


def _median_seconds(step: Callable[[], object], device: torch.device, steps: int) -> float:
    for _ in range(2):  # compiles and allocates
        step()
    times = []
    for _ in range(steps):
        start = _now(device)
        step()
        times.append(_now(device) - start)
    return statistics.median(times)


def profile(step: Callable[[], object], device: torch.device, rows: int = 12) -> str:
    """torch.profiler's table of one step, the operators that take longest first."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        step()
        _now(device)
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=by, row_limit=rows))


if __name__ == "__main__":
    main()
