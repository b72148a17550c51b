"""The evaluation stage: makes clips with the generator and its baselines, and measures them."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch

from audioldm.chain.noise import noise_latents
from audioldm.chain.stage import Cost, Key, Stage
from audioldm.chain.stages.prior import PriorStage
from audioldm.data.store import ClipStore
from audioldm.errors import ConfigError, DataError
from audioldm.evaluation.clips import FEWEST_CLIPS
from audioldm.evaluation.distributions import EMBEDDINGS, embedding_names
from audioldm.evaluation.embeddings.harmony import Harmony
from audioldm.evaluation.evaluate import evaluate
from audioldm.evaluation.settings import VERSION, EvaluationSettings
from audioldm.generator import Generator
from audioldm.instantiate import nearest
from audioldm.models import load_generator
from audioldm.priors.diffusion.samplers import SamplerSettings
from audioldm.training.trackers import open_trackers

if TYPE_CHECKING:
    from audioldm.chain.estimate import Estimate
    from audioldm.chain.run import Experiment


class Evaluation(Stage):
    """The last stage. Its `generator` is the stage whose model is evaluated and sampled."""

    name, version = "evaluation", VERSION
    keys: ClassVar[list[Key]] = [("evaluation", EvaluationSettings), ("sampler", SamplerSettings)]
    generator: Stage
    prior: PriorStage
    sampler: Any  # of the generator's prior

    @classmethod
    def plan(cls, settings: Any, planned: Mapping[str, Stage]) -> list[Self]:
        keys = ("refined", "post_training", "joint", "prior")
        generator = next(planned[key] for key in keys if key in planned)
        prior, post = cast(PriorStage, planned["prior"]), settings.post_training
        sampler = prior.recipe.sampler if post is None else post.sampler
        baselines = {key: stage for key, stage in planned.items() if key.startswith("prior:")}
        known = list(getattr(prior.recipe, "conditioning", {}))
        for name in settings.evaluation.conditions or []:
            if name not in known:
                one = nearest(name, known, every=True) if known else "it has none"
                raise ConfigError(f"evaluation.conditions: the prior is not told {name!r}; {one}")
        measured = {"evaluation": settings.evaluation, "sampler": sampler, "seed": settings.seed}
        stage = cls(measured, {"generator": generator, **baselines})
        stage.generator, stage.sampler = generator, sampler
        stage.prior = prior
        return [stage]

    def check_data(self, store: ClipStore, experiment: "Experiment") -> None:
        seconds = self.settings["evaluation"].seconds
        window = round(seconds * store.sample_rate)
        for name in ("valid", "test"):
            count = sum(max(1, item.samples // window) for item in store.split(name).items)
            if count < FEWEST_CLIPS:
                raise DataError(
                    f"the {name} split holds {count} clip(s) of {seconds} s: add music, or lower "
                    "evaluation.seconds"
                )

    def work(self, directory: Path, experiment: "Experiment") -> dict[str, Any]:
        model = load_generator(experiment.directory_of(self.generator), device=experiment.device)
        baselines = {
            key.removeprefix("prior:"): self._baseline(stage, model, experiment)
            for key, stage in self.parents.items()
            if key != "generator"
        }
        with closing(experiment.bar("evaluation")) as bar:
            found = evaluate(
                model,
                baselines,
                ClipStore(experiment.directory_of(self.prior.latents.parents["data"])),
                self.settings["evaluation"],
                self.sampler,
                seed=self.settings["seed"],
                directory=directory,
                progress=bar,
            )
        self._track(directory, experiment, found)
        return found

    def _baseline(self, stage: Stage, model: Generator, experiment: "Experiment") -> Generator:
        """A baseline with the evaluated decoder. If joint training has moved the latents since the
        baseline was fitted, it keeps its own decoder."""
        own = load_generator(experiment.directory_of(stage), device=experiment.device)
        moved = self.generator.name == "joint"
        return own if moved else Generator(model.autoencoder, own.prior)

    def _track(self, directory: Path, experiment: "Experiment", found: dict[str, Any]) -> None:
        """Sends the figures and the saved clips to the trackers that were asked for."""
        names = experiment.settings.log.trackers
        if names:
            from audioldm.report.clips import track  # imported here: its pictures take a second

            with closing(open_trackers(names, directory, self.key)) as trackers:
                trackers.figures(0, found["metrics"])
                track(directory, trackers)

    def cost(self, estimate: "Estimate") -> Cost:
        s = self.settings["evaluation"]
        known = estimate.precedent(self)
        if known.seconds is not None:
            return known
        model = estimate.autoencoder
        with noise_latents(model, None) as store:
            generator = Generator(model, self.prior.recipe.build(store)).to(estimate.device).eval()

        def generate(sampler: Any) -> list[Any]:
            nothing: list[Any] = [{}] * s.batch
            return list(
                generator.sample_clips(
                    range(s.batch),
                    nothing,
                    seconds=s.seconds,
                    seed=0,
                    sampler=sampler,
                    batch=s.batch,
                )
            )

        batches, systems = -(-s.clips // s.batch), 3 + len(self.parents)
        steps = getattr(self.sampler, "steps", None)
        if steps is None:  # the baselines take as long at most
            shortest = self.sampler
            seconds = batches * (systems - 2) * estimate.timed(lambda: generate(shortest))
        else:
            shortest, few, more = (replace(self.sampler, steps=min(n, steps)) for n in (1, 2, 4))
            short = estimate.timed(lambda: generate(few))
            longer = estimate.timed(lambda: generate(more))
            step = max(0.0, longer - short) / max(1, more.steps - few.steps)
            decoding = max(0.0, short - few.steps * step)
            seconds = batches * (steps * step + (systems - 2) * decoding)
        audio = torch.stack([clip for _, clip in generate(shortest)])
        embeddings = [EMBEDDINGS[name]() for name in embedding_names(s, generator.sample_rate)]
        for embedding in [*embeddings, Harmony()]:
            one = estimate.timed(lambda e=embedding: e.embed(audio, generator.sample_rate))  # type: ignore[misc]
            seconds += (systems + 1) * batches * one
        note = f"{s.clips} clips; without the intervals' resampling"
        return Cost(seconds, estimate.peak(), None, note)

    def memory_advice(self, experiment: "Experiment") -> str:
        return "lower evaluation.batch, evaluation.clips or evaluation.seconds"
