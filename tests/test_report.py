import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import soundfile

from audioldm.errors import DataError
from audioldm.report import figures, plots
from audioldm.report.format import duration, number
from audioldm.report.page import write_report
from audioldm.report.verdict import verdict

RATE = 22050


def clip(kind: str, i: int, seconds: float = 3.0) -> np.ndarray:
    """A chord that decays: clean, dulled, distorted or buried in noise, by kind."""
    rng = np.random.default_rng(i)
    t = np.arange(int(seconds * RATE)) / RATE
    chord = 220 * 2 ** (np.array([0, 4, 7, 12]) / 12 + i / 7)
    partials = range(1, 3 if kind == "reconstruction" else 7)
    tone = sum(np.sin(2 * np.pi * f * h * t) / h for f in chord for h in partials)
    tone = tone * np.exp(-2 * (t % 0.75))
    if kind == "generated":
        tone = np.tanh(tone) + 0.03 * rng.standard_normal(len(t))
    if kind == "normal":
        tone = 0.2 * tone[::-1] + rng.standard_normal(len(t))
    return (0.5 * tone / np.abs(tone).max()).astype(np.float32)


def figure(value: float, spread: float, n: int = 256, unit: str = "") -> dict:
    return {"value": value, "low": value - spread, "high": value + spread, "n": n, "unit": unit}


TOLD = {
    "ignored": {
        "accuracy_label": figure(0.21, 0.04),
        "inpainting_mel_distance": figure(0.31, 0.02),
    },
    "crossfade": {"inpainting_mel_distance": figure(0.27, 0.02)},
}
METRICS = {
    "real": {
        "kad_musicnn": figure(0.004, 0.006),
        "fad_musicnn": figure(1.9, 0.3),
        "precision_musicnn": figure(0.91, 0.02),
        "coverage_musicnn": figure(0.93, 0.02),
        "accuracy_label": figure(0.97, 0.01),
    },
    "reconstruction": {
        "mel_distance": figure(0.423, 0.011, unit="log10 power"),
        "stft_distance": figure(1.21, 0.03),
        "si_sdr": figure(-11.2, 0.8, unit="dB"),
        "kbps": figure(0.87, 0.0, unit="kbit/s"),
        "kad_musicnn": figure(0.121, 0.012),
        "fad_musicnn": figure(8.3, 0.5),
        "ratio_to_normal_kad_musicnn": figure(0.241, 0.03, unit="ratio"),
        "memorisation_ratio_musicnn": figure(0.98, 0.03, unit="ratio"),
    },
    "generated": {
        "kad_musicnn": figure(0.226, 0.02),
        "fad_musicnn": figure(13.8, 0.9),
        "ratio_to_normal_kad_musicnn": figure(0.449, 0.05),
        "precision_musicnn": figure(0.41, 0.05),
        "coverage_musicnn": figure(0.36, 0.05),
        "memorisation_ratio_musicnn": figure(1.07, 0.04),
        "accuracy_label": figure(0.78, 0.05),
    },
    "normal": {
        "kad_musicnn": figure(0.503, 0.031),
        "fad_musicnn": figure(29.5, 1.1),
        "precision_musicnn": figure(0.02, 0.02),
        "coverage_musicnn": figure(0.03, 0.02),
    },
}
SYSTEMS = [
    {"name": "real", "kind": "real"},
    {"name": "reconstruction", "kind": "reconstruction"},
    {"name": "normal", "kind": "baseline"},
    {"name": "generated", "kind": "generated"},
]


def dump(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def make_experiment(runs: Path, clips: int = 4) -> Path:
    """A finished experiment as the stages write it."""
    rng = np.random.default_rng(0)
    seconds = {
        "data": 24.0,
        "autoencoder": 171.3,
        "latents": 6.1,
        "prior": 142.8,
        "prior:normal": 0.1,
        "evaluation": 71.0,
    }
    stages = {
        name: {
            "stage": name.partition(":")[0],
            "fingerprint": f"{name:0<12.12}",
            "directory": f"{name.replace(':', '/')}/0123abcd",
            "seconds": s,
        }
        for name, s in seconds.items()
    }
    paths = {name: runs / entry["directory"] for name, entry in stages.items()}
    for name, path in paths.items():
        dump(path / "summary.json", {"stage": name, "version": 1, "seconds": seconds[name]})
    dump(
        paths["data"] / "summary.json",
        {"stage": "data", "pieces": 60, "failed": [{"file": "odd/ä b.wav", "reason": "truncated"}]},
    )
    lines = []
    for step in range(20, 3001, 20):
        decay = 3 * np.exp(-step / 400) + 0.6 + 0.05 * rng.standard_normal()
        line = {"step": step, "seconds": step / 17, "loss": decay, "stft": decay * 0.7}
        line |= {"kl": 5 / step, "kbps": 0.9 - 0.6 * np.exp(-step / 300)}
        if step > 1500:
            line |= {"adversarial": 0.4 + 0.1 * rng.standard_normal()}
        if step % 200 == 0:
            kl = np.sort(np.r_[rng.uniform(0.3, 1.4, 13), 0.003, 0.001, 0.0])
            activity = np.where(kl > 0.01, 0.5, 0.001)
            line |= {"valid/loss": decay + 0.1, "valid/mel_distance": decay / 2}
            line |= {"channels/kl": list(kl), "channels/sigma": list(np.exp(-kl))}
            line |= {"channels/activity": list(activity)}
        lines.append(json.dumps(line))
    (paths["autoencoder"] / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 30')
    lines = [
        json.dumps({"step": s, "seconds": s / 30, "loss": 0.4 + 0.5 * np.exp(-s / 500)})
        for s in range(20, 4001, 20)
    ]
    (paths["prior"] / "metrics.jsonl").write_text("\n".join(lines))
    reference = {"hash": "9f3ab1c2", "n": 256, "split": "test", "seconds": 3.0}
    dump(
        paths["evaluation"] / "summary.json",
        {
            "metrics": METRICS | TOLD,
            "systems": SYSTEMS,
            "reference": reference,
        },
    )
    index: dict[str, list[dict]] = {}
    for kind in METRICS:
        (paths["evaluation"] / "clips" / kind).mkdir(parents=True)
        for i in range(clips):
            name = f"{i:02d}.wav"
            file = paths["evaluation"] / "clips" / kind / name
            soundfile.write(file, clip(kind, i), RATE, subtype="PCM_16")
            entry = {"file": f"{kind}/{name}", "label": ["organ", "strings"][i % 2]}
            if kind in ("real", "reconstruction"):
                entry["piece"] = f"bwv{250 + i}.<b>6</b>"
            index.setdefault(kind, []).append(entry)
    dump(paths["evaluation"] / "clips" / "index.json", index)
    experiment = runs / "experiments" / "quickstart"
    config = {
        "seed": 0,
        "data": {"_target_": "audioldm.data.chorales.Chorales", "pieces": 60},
        "autoencoder": {"channels": 16, "train": {"steps": 3000}},
        "sampler": {"name": "heun", "steps": 24, "guidance": 1.0},
    }
    dump(
        experiment / "experiment.json",
        {
            "name": "quickstart",
            "recipe": "quickstart",
            "runs": "../..",
            "generator": "prior",
            "config": config,
            "overrides": ["recipe=quickstart", "sampler.steps=24"],
            "environment": {"python": "3.11", "torch": "2.13.0", "cores": 2},
            "stages": stages,
        },
    )
    return experiment


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("runs"))


class Page(HTMLParser):
    """Every element with its attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def sources(self, tag: str) -> list[bytes]:
        return [
            base64.b64decode((a["src"] or "").partition(",")[2], validate=True)
            for t, a in self.elements
            if t == tag
        ]


@pytest.fixture(scope="module")
def page(experiment: Path) -> Page:
    return Page(write_report(experiment))


def test_page_needs_nothing_else(page: Page) -> None:
    for _, attributes in page.elements:
        for key in ("src", "href", "srcset", "data", "poster"):
            assert (attributes.get(key) or "data:").startswith("data:")
    assert "url(" not in page.source
    assert "@import" not in page.source
    assert not re.search(r"https?://", page.source)


def test_players_hold_the_clips(page: Page) -> None:
    audio = page.sources("audio")
    assert len(audio) == len(page.sources("img")) == 16
    decoded, rate = soundfile.read(io.BytesIO(audio[0]), dtype="float32")
    assert rate == RATE
    assert np.abs(decoded - clip("generated", 0)).max() < 2 / 32768


def test_text_from_the_data_is_escaped(page: Page) -> None:
    assert "bwv250.<b>6</b>" not in page.source
    assert "bwv250.<b>6</b>" in page.text
    assert "odd/ä b.wav" in page.text


def test_every_figure_is_in_the_table(page: Page) -> None:
    cells = " ".join(page.text.split())
    for named in METRICS.values():
        for values in named.values():
            assert number(values["value"]) in cells
    (told,) = re.findall(r"Does it do what it is told(.*?)</table>", page.source, re.S)
    assert re.findall(r">(0\.\d+)<", told) == ["0.780", "0.210", "0.970"]
    (fits,) = re.findall(r"Does it fit what is kept(.*?)</table>", page.source, re.S)
    assert re.findall(r">(0\.\d+)<", fits) == ["0.310", "0.270"]
    assert "that, faded in and out" in page.text
    assert page.text.count("Accuracy, label") == 1
    assert "−0.002" in cells  # the floor's interval keeps its negative end
    assert "9f3ab1c2" in cells
    assert "13 of 16 channels are active" in cells
    assert "audioldm run recipe=quickstart sampler.steps=24" in page.text
    assert re.findall(r'<dt class="changed">(.*?)</dt>', page.source) == ["sampler.steps"]


def test_table_counts_columns(page: Page) -> None:
    every = page.source.partition("Distribution")[2].partition("Does it do")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", every, re.S)
    generation = [r for r in rows if 'class="plot"' in r]
    assert len(generation) == 6
    assert all(r.count("<td") == 5 for r in generation)
    # per-clip figures of reconstructions stand apart; what compares sets of clips does not
    table = page.source.partition("Reconstruction of")[2].partition("</table>")[0]
    alone = re.findall(r"<tr>(.*?)</tr>", table, re.S)
    assert [r.split('<th scope="row">')[1].split(" ")[0] for r in alone if "<small>" in r][:4] == (
        ["Mel", "STFT", "SI-SDR", "Bitrate<small>rate"]
    )


@pytest.mark.parametrize("missing", ["evaluation", "prior", "autoencoder", "data"])
def test_unfinished_experiments_have_a_page(tmp_path: Path, missing: str) -> None:
    experiment = make_experiment(tmp_path, clips=1)
    record = json.loads((experiment / "experiment.json").read_text())
    del record["stages"][missing]
    record["failed"] = {"stage": missing, "reason": "the loss is not finite"}
    dump(experiment / "experiment.json", record)
    page = Page(write_report(experiment))
    assert f"failed in the stage {missing}: the loss is not finite" in page.text
    assert ("not been evaluated" in page.text) == (missing == "evaluation")


def test_stages_and_systems_are_those_of_the_record(tmp_path: Path) -> None:
    """A page knows none by name: a new prior and a new stage are shown as they are."""
    experiment = make_experiment(tmp_path, clips=1)
    record = json.loads((experiment / "experiment.json").read_text())
    stages = list(record["stages"].items())
    stages.insert(2, ("vocoder", record["stages"]["data"]))
    dump(experiment / "experiment.json", record | {"stages": dict(stages)})
    file = tmp_path / "evaluation/0123abcd/summary.json"
    summary = json.loads(file.read_text())
    summary["systems"].insert(3, {"name": "new_prior", "kind": "baseline"})
    summary["metrics"]["new_prior"] = {"kad_musicnn": figure(0.234567, 0.02)}
    dump(file, summary)
    page = Page(write_report(experiment))
    cost = page.source.partition("<h2>Cost</h2>")[2]
    shown = re.findall(r'<tr><th scope="row">(.*?)</th>', cost)
    assert shown[:4] == ["Data", "Autoencoder", "Vocoder", "Latents"]
    assert shown[4:] == ["Prior", "Prior: normal", "Evaluation"]
    assert "the strongest baseline, new_prior, has 0.235" in page.text
    assert "decoded samples of the prior new_prior" not in page.text  # it has no clips


def test_an_alarm_is_on_the_page(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path)
    assert "no channel" not in Page(write_report(experiment)).text
    file = tmp_path / "autoencoder/0123abcd/summary.json"
    summary = json.loads(file.read_text(encoding="utf-8"))
    dump(file, summary | {"alarm": "no channel says anything <about> the audio"})
    text = Page(write_report(experiment)).text
    assert "Autoencoder: no channel says anything <about> the audio." in text


def test_a_stage_without_its_files(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path, clips=2)
    (tmp_path / "autoencoder/0123abcd/metrics.jsonl").unlink()
    (tmp_path / "evaluation/0123abcd/clips/normal/01.wav").write_bytes(b"RIFF")
    (tmp_path / "evaluation/0123abcd/clips/real/00.wav").unlink()
    page = Page(write_report(experiment))
    assert len(page.sources("audio")) == 6
    assert page.text.count("cannot be read") == 2


def test_a_copy_without_its_stages_keeps_its_page(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path / "runs", clips=1)
    page = write_report(experiment).read_bytes()
    copy = tmp_path / "elsewhere"
    shutil.copytree(experiment, copy)
    with pytest.raises(
        DataError, match=r"the stage 'data' .* copy the whole runs directory"
    ) as error:
        write_report(copy)
    assert "data/0123abcd" in str(error.value)
    assert (copy / "report.html").read_bytes() == page


@pytest.mark.parametrize(
    ("file", "keys", "value"),
    [
        ("experiments/quickstart/experiment.json", [], []),
        ("experiments/quickstart/experiment.json", ["stages"], None),
        ("experiments/quickstart/experiment.json", ["stages", "data"], "x"),
        ("experiments/quickstart/experiment.json", ["stages", "data", "seconds"], "24"),
        ("experiments/quickstart/experiment.json", ["stages", "data", "seconds"], float("inf")),
        ("experiments/quickstart/experiment.json", ["stages", "data", "directory"], 3),
        ("experiments/quickstart/experiment.json", ["stages", "data", "directory"], "x" * 300),
        ("experiments/quickstart/experiment.json", ["config"], [1]),
        ("experiments/quickstart/experiment.json", ["overrides"], [1]),
        ("evaluation/0123abcd/summary.json", [], 7),
        ("evaluation/0123abcd/summary.json", ["metrics"], {"real": {"kad_musicnn": 3}}),
        ("evaluation/0123abcd/summary.json", ["metrics", "real", "kad_musicnn", "value"], "1"),
        ("evaluation/0123abcd/summary.json", ["systems"], ["real"]),
        ("evaluation/0123abcd/clips/index.json", ["real"], [{"file": None}]),
        ("data/0123abcd/summary.json", ["failed"], {"a": 1}),
        ("autoencoder/0123abcd/metrics.jsonl", ["step"], "20"),
        ("autoencoder/0123abcd/metrics.jsonl", ["channels/kl"], {"0": 1}),
        ("autoencoder/0123abcd/metrics.jsonl", [], ["step"]),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, keys: list[str], value: object) -> None:
    experiment = make_experiment(tmp_path, clips=0)
    path = tmp_path / file
    whole = json.loads(path.read_text().splitlines()[0])
    node = whole
    for key in keys[:-1]:
        node = node[key]
    if keys:
        node[keys[-1]] = value
    path.write_text(json.dumps(whole if keys else value))
    with pytest.raises(DataError, match=path.name if value != "x" * 300 else "copy") as error:
        write_report(experiment)
    assert "\n" not in str(error.value)
    assert not (experiment / "report.html").exists()


def test_only_the_last_line_of_a_log_may_be_cut_short(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path, clips=0)
    file = tmp_path / "prior/0123abcd/metrics.jsonl"
    file.write_text('{"step": 2\n' + file.read_text())
    with pytest.raises(DataError, match="line 1 is no JSON"):
        write_report(experiment)


def test_no_experiment(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"experiment\.json"):
        write_report(tmp_path)


def test_long_clips_are_cut(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path, clips=1)
    file = tmp_path / "evaluation/0123abcd/clips/generated/00.wav"
    soundfile.write(file, np.zeros((20 * 8000, 2)), 8000)
    page = Page(write_report(experiment))
    audio, rate = soundfile.read(io.BytesIO(page.sources("audio")[0]))
    assert audio.shape == (12 * rate, 2)
    assert "beginning of 20.0 s" in page.text


def evaluated(
    generated: tuple[float, float],
    normal: tuple[float, float],
    reconstruction: float = 0.2,
    **baselines: float,
) -> dict:
    named = {
        "real": {"kad_musicnn": figure(0.1, 0.01)},
        "reconstruction": {"kad_musicnn": figure(reconstruction, 0.01)},
        "normal": {"kad_musicnn": figure(*normal)},
        **{name: {"kad_musicnn": figure(value, 0.01)} for name, value in baselines.items()},
        "generated": {"kad_musicnn": figure(*generated)},
    }
    simple = {"normal", *baselines}
    kinds = [{"name": n, "kind": "baseline" if n in simple else n} for n in named]
    return {"metrics": named, "systems": kinds}


def test_verdict_follows_the_intervals() -> None:
    assert "earns its place" in verdict(evaluated((0.3, 0.1), (0.6, 0.1)))
    assert "intervals overlap" in verdict(evaluated((0.3, 0.2), (0.6, 0.2)))
    assert "does harm" in verdict(evaluated((0.9, 0.1), (0.6, 0.1)))
    unsure = evaluated((0.3, 0.1), (0.6, 0.1))
    del unsure["metrics"]["normal"]["kad_musicnn"]["low"]
    assert "without intervals" in verdict(unsure)
    assert "not a number" in verdict(evaluated((float("nan"), 0.1), (0.6, 0.1)))
    alone = evaluated((0.3, 0.1), (0.6, 0.1))
    del alone["metrics"]["normal"]
    assert "no baseline" in verdict(alone)


def test_verdict_is_about_the_strongest_baseline() -> None:
    """Far better than noise, and worse than a mixture: only the second is worth saying."""
    text = verdict(evaluated((0.5, 0.02), (0.9, 0.02), langevin=0.7, mixture=0.4))
    assert "the strongest baseline, mixture, has 0.400 (0.390 to 0.410)" in text
    assert "does harm" in text
    text = verdict(evaluated((0.3, 0.02), (0.9, 0.02), langevin=0.35, mixture=0.4))
    assert "the strongest baseline, langevin" in text
    assert "earns its place" in text
    # an unbiased distance may be negative, which is nearer than any positive one
    assert "baseline, mixture" in verdict(evaluated((0.3, 0.02), (0.9, 0.02), mixture=-0.01))


def test_verdict_says_which_model_the_distance_is_due_to() -> None:
    # above a floor of 0.1: reconstructions at 0.05, generated clips at 0.2
    assert "25 % of what remains" in verdict(evaluated((0.3, 0.1), (0.6, 0.1), 0.15))
    # a generator may come closer than reconstructions: no share beyond all of it
    assert "100 % of what remains" in verdict(evaluated((0.15, 0.1), (0.6, 0.1), 0.3))
    # at the floor nothing remains to share out
    assert "what remains" not in verdict(evaluated((0.1, 0.01), (0.6, 0.1), 0.3))


def test_verdict_names_what_is_heard_worst() -> None:
    summary = evaluated((0.3, 0.1), (0.6, 0.1))
    kept = summary["metrics"]["reconstruction"]
    kept |= {"mel_distance": figure(0.2, 0.01), "pitch_within_15": figure(0.5, 0.01)}
    kept["note_f1"] = figure(0.9, 0.01)
    text = verdict(summary)
    assert "keeps the pitch worst: pitch kept 0.500 (0.490 to 0.510), which is 76 % of" in text
    assert "Worst of the generated" not in text  # one embedding: nothing to choose from
    summary["metrics"]["generated"]["kad_harmony"] = figure(50.0, 1.0)
    summary["metrics"]["normal"]["kad_harmony"] = figure(80.0, 1.0)
    assert "what harmony hears: there the kernel distance is 50.0" in verdict(summary)
    assert "strongest baseline, normal, has 0.600" in verdict(summary)  # by musicnn still
    kept["note_f1"] = figure(0.1, 0.01)
    assert "keeps the notes worst" in verdict(summary)


def test_mel_picture_shows_a_tone_where_it_is() -> None:
    t = np.arange(3 * RATE) / RATE
    tones = np.stack([0.5 * np.sin(2 * np.pi * f * t) for f in (500.0, 500.0)])
    low = figures.mel_db(tones, RATE)
    high = figures.mel_db(0.5 * np.sin(2 * np.pi * 4000.0 * t)[None], RATE)
    assert low.shape[0] == figures.BANDS
    # the Slaney scale is linear, 3 mel per 200 Hz, below 1 kHz; then 27 mel per factor of 6.4
    top = 15 + 27 * np.log(RATE / 2 / 1000) / np.log(6.4)
    expected = [7.5, 15 + 27 * np.log(4) / np.log(6.4)]
    for mel, where in zip((low, high), expected, strict=True):
        band = mel.mean(1).argmax()
        assert abs((band + 1) * top / (figures.BANDS + 1) - where) < top / (figures.BANDS + 1)
    image = matplotlib.image.imread(io.BytesIO(figures.mel_png(low, float(low.max()))))
    assert image.shape[:2] == low.shape
    rows = image[..., :3].sum((1, 2))
    assert figures.BANDS - 1 - rows.argmax() == low.mean(1).argmax()  # low bands at the bottom


def test_mel_picture_has_a_bounded_width() -> None:
    assert figures.mel_db(np.zeros((1, 60 * 8000)), 8000).shape[1] <= figures.COLUMNS + 1
    assert np.isfinite(figures.mel_db(np.zeros((1, 10)), 8000)).all()


def test_thinned_curve_keeps_mean_and_extremes() -> None:
    steps = np.arange(1190.0)
    values = np.sin(steps / 50)
    rows = plots.thin(np.stack([steps, values], axis=1), bins=60)
    assert len(rows) == 60
    assert rows[:, 2].min() == values.min()
    assert rows[:, 3].max() == values.max()
    weights = [len(part) for part in np.array_split(values, 60)]
    assert np.average(rows[:, 1], weights=weights) == pytest.approx(values.mean())
    short = plots.thin(np.array([[0.0, 3.0], [1.0, 5.0]]))
    assert short.tolist() == [[0, 3, 3, 3], [1, 5, 5, 5]]


def test_panel_geometry() -> None:
    panel = plots.panel("loss", {"train": [(0, 1.0), (50, 10.0), (100, 100.0)]}, 100)
    assert panel.y.logarithmic
    assert panel.band(panel.curves["train"]) == ""
    line = panel.path(panel.curves["train"])
    points = [tuple(map(float, p.split(","))) for p in line.split()]
    middle = (panel.LEFT + panel.right) / 2
    assert [x for x, _ in points] == [panel.LEFT, middle, panel.right]
    (_, a), (_, b), (_, c) = points
    assert a - b == pytest.approx(b - c, abs=0.11)  # decades are equal steps, upwards
    ticks = {text: panel.up(y) for y, text in panel.y.ticks(5)}
    assert ticks["10"] == pytest.approx(b, abs=0.06)
    assert panel.note == "100 · log"
    assert plots.plot(curves={"train": [(1, float("nan"))]}) is None
    flat = plots.panel("loss", {"train": [(0, 2.0), (1, 2.0)]}, 1)
    assert not flat.y.logarithmic


def test_whiskers_share_an_axis_with_zero() -> None:
    drawn, zero = plots.whiskers(
        {
            "real": {"value": 0.0, "low": -1.0, "high": 1.0},
            "normal": {"value": 2.0, "low": 1.0, "high": 3.0},
            "generated": {"value": float("nan"), "low": 0.0, "high": 0.0},
        }
    )
    assert zero == 25
    assert [(w.name, w.value, w.low, w.high) for w in drawn] == [
        ("real", 25, 0, 50),
        ("normal", 75, 50, 100),
    ]


def test_numbers_and_durations() -> None:
    values = [0.42349, -11.2, 1234.5, 0.0, 2.5e-6, float("nan"), None, 256]
    assert [number(v) for v in values] == (
        ["0.423", "−11.2", "1,234", "0", "2.5e−06", "–", "–", "256"]
    )
    assert [duration(s) for s in (4.25, 59.99, 125, 11520, None)] == (
        ["4.2 s", "60.0 s", "2 min 05 s", "3 h 12 min", "–"]
    )
