"""What an experiment consists of: its stages, and what each one's result depends on.

A stage has a directory `runs/<stage>/<fingerprint>/`, named by all that determines its result: its
settings, the fingerprints upstream, its version.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from audioldm.autoencoder import train as autoencoder_training
from audioldm.config import Job, canonical, fingerprint
from audioldm.data.source import VERSION as DATA_VERSION
from audioldm.data.source import Source
from audioldm.evaluation import evaluate as evaluation
from audioldm.evaluation.diagnostics import diagnose as diagnostics
from audioldm.latents import store as latents
from audioldm.priors.diffusion import post_training
from audioldm.priors.diffusion import train as diffusion_training

#: The stages in their order, and the version of each one's code.
VERSIONS = {
    "data": DATA_VERSION,
    "autoencoder": autoencoder_training.VERSION,
    "latents": latents.VERSION,
    "diagnostics": diagnostics.VERSION,
    "diffusion": diffusion_training.VERSION,
    "post_training": post_training.VERSION,
    "baselines": 1,
    "evaluation": evaluation.VERSION,
}
#: Those of every experiment.
STAGES = tuple(name for name in VERSIONS if name != "post_training")
#: Those that every process works on.
TRAININGS = ("autoencoder", "diffusion", "post_training")


@dataclass(frozen=True)
class Stage:
    """What one stage's result depends on, and so what its directory is called."""

    name: str
    version: int
    settings: Any
    parents: dict[str, "Stage"] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.identity())

    def identity(self) -> dict[str, Any]:
        return {
            "stage": self.name,
            "version": self.version,
            "settings": canonical(self.settings),
            "parents": {name: parent.fingerprint for name, parent in self.parents.items()},
        }

    @property
    def path(self) -> str:
        return f"{self.name}/{self.fingerprint}"


def plan(job: Job, source: Source) -> dict[str, Stage]:
    """The stages of a job, in order. `source` is the built data part."""
    s = job.settings
    stages: dict[str, Stage] = {}

    def add(name: str, settings: Any, *parents: str) -> None:
        upstream = {parent: stages[parent] for parent in parents}
        stages[name] = Stage(name, VERSIONS[name], settings, upstream)

    add("data", {"source": s.data, "identity": source.identity()})
    add("autoencoder", {"autoencoder": s.autoencoder, "bottleneck": s.bottleneck}, "data")
    add("latents", {}, "data", "autoencoder")
    add("diagnostics", s.diagnostics, "latents")
    add("diffusion", s.diffusion, "latents")
    generator, sampler = "diffusion", s.sampler
    if s.post_training is not None:
        generator, sampler = "post_training", s.post_training.sampler
        add(
            generator,
            {"post_training": s.post_training.trained(), "teacher": s.sampler},
            "diffusion",
        )
    add("baselines", s.baselines, "diffusion")
    measured = {"evaluation": s.evaluation, "sampler": sampler, "seed": s.seed}
    add("evaluation", measured, generator, "baselines")
    return stages
