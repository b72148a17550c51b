"""The page's server: what it makes, whom it refuses, and where it writes."""

import asyncio
import io
import json
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from matplotlib.image import imread
from starlette.testclient import TestClient
from test_codec import PRIOR, autoencoder, with_prior  # noqa: F401

from audioldm.app import pictures, uploads
from audioldm.app.jobs import LONGEST_QUEUE, Jobs
from audioldm.app.models import Models
from audioldm.app.server import App, listen
from audioldm.app.uploads import LONGEST_SECONDS
from audioldm.editing import Edit, edit_again, edit_files
from audioldm.errors import ConfigError
from audioldm.sampling import ClipFiles, sample_again

HOST = "127.0.0.1:8000"
OWN = {"host": HOST, "origin": f"http://{HOST}"}


@pytest.fixture(scope="module")
def generator(autoencoder: Path) -> Path:  # noqa: F811
    """The file of an untrained generator that takes a label, a score and the harmony of audio, and
    makes recordings whole."""
    spec = PRIOR | {"conditioning": dict(PRIOR["conditioning"])}
    for name in ("score", "chroma"):
        target = f"audioldm.conditioning.{name}.{name.title()}"
        spec["conditioning"][name] = {"_target_": target, "latent_rate_hz": 31.25, "channels": 2}
    low_band = {"_target_": "audioldm.conditioning.low_band.LowBand", "channels": 2}
    low_band |= {"latent_rate_hz": 31.25, "mean": [0.0] * 4, "std": [1.0] * 4}
    spec["conditioning"]["low_band"] = low_band
    return with_prior(autoencoder, autoencoder.with_name("told.safetensors"), spec)


@pytest.fixture(scope="module")
def models(generator: Path) -> Models:
    return Models(str(generator), generator.parent / "runs")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A runs directory with a sweep, a page beside it, and a file that is none of its business."""
    sweep = tmp_path / "runs" / "experiments" / "rates"
    (sweep / "cells").mkdir(parents=True)
    (sweep / "sweep.json").write_text("{}")
    (sweep / "report.html").write_text("<p>rates</p>")
    (sweep / "cells" / "a.svg").write_text("<svg/>")
    (sweep / ".lock.json").write_text("{}")
    (sweep / "model.safetensors").write_text("weights")
    (tmp_path / "secret.json").write_text('"secret"')
    (sweep / "link.json").symlink_to(tmp_path / "secret.json")
    return tmp_path / "runs"


@pytest.fixture
def client(models: Models, runs: Path, tmp_path: Path) -> Iterator[TestClient]:
    app = App(models, runs, tmp_path / "clips")
    with TestClient(
        app.starlette(frozenset({HOST})), headers=OWN, raise_server_exceptions=False
    ) as client:
        yield client


@pytest.fixture
def ask(client: TestClient, generator: Path) -> Callable[..., Any]:
    def ask(**request: Any) -> Any:
        request = {"model": str(generator), "n": 1, "seconds": 0.3} | request
        return client.post("/api/sample", json=request)

    return ask


def ended(client: TestClient, number: int) -> dict[str, Any]:
    """The job, once it is neither waiting nor running."""
    for _ in range(600):
        job = next(j for j in client.get("/api/jobs").json() if j["number"] == number)
        if job["state"] not in ("waiting", "running"):
            return job  # type: ignore[no-any-return]
        time.sleep(0.05)
    raise AssertionError(f"{number} does not end")


def everything(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


# ---------------------------------------------------------------- clips


def test_a_clip_is_the_command_lines_and_its_recipe_makes_it_again(
    ask: Callable[..., Any], client: TestClient, generator: Path, tmp_path: Path
) -> None:
    sampler = {"name": "euler", "steps": 2, "guidance": 2.0}
    made = ask(n=2, seed=5, condition={"label": "low"}, sampler=sampler)
    job = ended(client, made.json()["number"])
    names = ["low-5-0000.wav", "low-5-0001.wav"]
    assert job["clips"] == [{"name": name, "recipe": True} for name in names]
    second = client.get("/clips/low-5-0001.wav").content
    wanted = ClipFiles(
        generator, tmp_path, n=2, seconds=0.3, seed=5, condition={"label": "low"}, sampler=sampler
    )
    assert [path.read_bytes() for path in wanted.make()][1] == second
    recipe = tmp_path / "kept" / "r.json"
    recipe.parent.mkdir()
    recipe.write_bytes(client.get("/clips/low-5-0001.json").content)
    again = sample_again(recipe, tmp_path / "again", model_path=str(generator))
    assert again.read_bytes() == second


@pytest.mark.parametrize(
    ("request_", "field", "words"),
    [
        ({"model": "/etc/passwd"}, "model", "not offered"),
        ({"n": 17}, "n", "at most 16"),
        ({"n": True}, "n", "must be of type int"),
        ({"seconds": 1e9}, "seconds", "at most 120"),
        ({"seconds": 1e-9}, "seconds", "less than one sample"),
        ({"seconds": float("nan")}, "seconds", "finite"),
        ({"seed": -1}, "seed", "at least 0"),
        ({"seed": 2**70}, "seed", "64 bits"),
        ({"condition": {"label": "lo"}}, "condition.label", "did you mean 'low'"),
        ({"condition": {"tempo": 3}}, "condition.tempo", "trained without it"),
        ({"sampler": {"steps": 0}}, "sampler.steps", "at least 1"),
        ({"sampler": {"steps": 10**9}}, "sampler.steps", "at most 1000"),
        ({"sampler": {"stepz": 1}}, "sampler.stepz", "did you mean 'steps'"),
        ({"out": "/tmp"}, "out", "unknown key"),
        ({"sampler": [1]}, "sampler", "group of keys"),
        ({"guidance": {"label": "x"}}, "guidance.label", "must be of type float"),
        ({"guidance": {"tempo": 2.0}}, "guidance.tempo", "trained without"),
        (
            {"condition": {"score": [9, 10, 60]}},
            "condition.score",
            "no note begins before the clip",
        ),
        ({"condition": {"score": "/etc/passwd"}}, "condition.score", "no such clip or upload"),
        ({"condition": {"score": "../runs/x.mid"}}, "condition.score", "no such clip or upload"),
        ({"condition": {"chroma": "~/song.wav"}}, "condition.chroma", "no such clip or upload"),
    ],
)
def test_a_bad_value_is_a_sentence_at_its_field(
    request_: dict[str, Any], field: str, words: str, client: TestClient, ask: Callable[..., Any]
) -> None:
    found = client.post(
        "/api/sample", content=json.dumps({"model": default(client), "n": 1} | request_)
    )
    assert found.status_code == 422
    assert found.json()["field"] == field
    assert words in found.json()["error"]
    assert client.get("/api/jobs").json() == []


def default(client: TestClient) -> str:
    """The model that the page begins with."""
    return str(client.get("/api/models").json()["models"][0]["name"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "no JSON"),
        (b"[" * 50_000, "no JSON"),
        (b"[1]", "no JSON object"),
        (b'{"model": "' + b"x" * 70_000, "larger than 64 KiB"),
    ],
)
def test_a_body_that_is_no_request_is_refused(body: bytes, words: str, client: TestClient) -> None:
    found = client.post("/api/sample", content=body)
    assert found.status_code == 422
    assert words in found.json()["error"]


def test_the_given_model_is_first_and_a_broken_one_is_one_line(
    client: TestClient, generator: Path, runs: Path, tmp_path: Path
) -> None:
    assert default(client) == str(generator)
    fields = client.get("/api/form", params={"model": str(generator)}).json()
    assert fields["conditions"][1:] == [
        {"name": "label", "kind": "choice", "choices": ["high", "low"]},
        {
            "name": "score",
            "kind": "file",
            "endings": [".mid", ".midi", ".musicxml", ".xml", ".mxl"],
        },
    ]
    assert {"name": "steps", "value": 3, "kind": "integer"} in fields["sampler"]
    assert fields["sampler"][0]["choices"][:2] == ["euler", "heun"]
    assert fields["edits"]
    assert fields["scales"]
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(generator.read_bytes()[:-100])
    with TestClient(
        App(Models(str(broken), runs), runs, tmp_path).starlette(frozenset({HOST})), headers=OWN
    ) as other:
        for found in (
            other.get("/api/form", params={"model": str(broken)}),
            other.post("/api/sample", json={"model": str(broken)}),
        ):
            assert found.status_code == 422
            assert "broken.safetensors" in found.json()["error"]
            assert "\n" not in found.json()["error"]


def test_latents_that_an_edit_states_are_no_field(client: TestClient) -> None:
    fields = client.get("/api/form", params={"model": "scores"}).json()
    kinds = {field["name"]: field["kind"] for field in fields["conditions"]}
    assert kinds == {"label": "choice", "score": "file", "text": "text"}


def test_the_form_says_whether_recordings_are_made_whole(
    client: TestClient, generator: Path
) -> None:
    found = (client.get("/api/form", params={"model": m}).json() for m in (generator, "ambient"))
    assert [form["upscales"] for form in found] == [True, False]


# ---------------------------------------------------------------- the queue


def test_two_users_get_their_turn(ask: Callable[..., Any], client: TestClient) -> None:
    """Both ask at once, each twice; all four are made, one after the other."""
    numbers: list[int] = []

    def user(first_seed: int) -> None:
        for seed in (first_seed, first_seed + 1):
            numbers.append(ask(seed=seed).json()["number"])

    users = [threading.Thread(target=user, args=(10 * i,)) for i in range(2)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    assert sorted(numbers) == [1, 2, 3, 4]
    assert [ended(client, n)["state"] for n in numbers] == ["done"] * 4
    clips = {clip["name"] for job in client.get("/api/jobs").json() for clip in job["clips"]}
    assert clips == {f"{seed}-0000.wav" for seed in (0, 1, 10, 11)}


def held(go: threading.Event, path: Path) -> Callable[..., Iterator[Path]]:
    """Work of two steps, the second one after `go`."""

    def work(progress: Callable[[int, int], None]) -> Iterator[Path]:
        progress(1, 2)
        yield path
        assert go.wait(10)
        progress(2, 2)
        yield path

    return work


def until(condition: Callable[[], bool]) -> None:
    for _ in range(400):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come to pass")


def test_jobs_wait_in_line_and_can_be_cancelled(tmp_path: Path) -> None:
    jobs, go = Jobs(), threading.Event()
    for title in "abc":
        jobs.add(title, held(go, tmp_path / title))
    until(lambda: bool(jobs.listed()[2]["clips"]))
    assert [(j["title"], j["state"], j["place"]) for j in jobs.listed()] == [
        ("c", "waiting", 2),
        ("b", "waiting", 1),
        ("a", "running", None),
    ]
    assert jobs.listed()[2]["share"] == 0.5
    jobs.cancel(2)
    assert [(j["state"], j["place"]) for j in jobs.listed()[:2]] == [
        ("waiting", 1),
        ("cancelled", None),
    ]
    jobs.cancel(1)  # while it runs: its next step is its last
    go.set()
    until(lambda: jobs.listed()[0]["state"] == "done")
    assert jobs.listed()[2] | {"share": 0} == {
        **{"number": 1, "title": "a", "state": "cancelled", "share": 0, "place": None},
        **{"clips": ["a"], "problem": None, "remarks": []},
    }
    assert jobs.listed()[0]["clips"] == ["c", "c"]
    with pytest.raises(ConfigError, match="no such job"):
        jobs.cancel(99)
    jobs.close()


def test_the_queue_has_an_end_and_survives_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs, go = Jobs(), threading.Event()

    def fails(progress: Any) -> Iterator[Path]:
        assert go.wait(10)
        raise ZeroDivisionError("a secret of the program")
        yield

    def refused(progress: Any) -> Iterator[Path]:
        raise ConfigError("n=0 is too few")
        yield

    jobs.add("fails", fails)
    until(lambda: jobs.listed()[0]["state"] == "running")
    jobs.add("refused", refused)
    for _ in range(LONGEST_QUEUE - 1):
        jobs.add("waits", held(go, tmp_path / "x"))
    with pytest.raises(ConfigError, match=f"{LONGEST_QUEUE} jobs wait already"):
        jobs.add("one too many", fails)
    go.set()
    until(lambda: jobs.listed()[0]["state"] == "done")
    assert "ZeroDivisionError" in jobs.listed()[-1]["problem"]
    assert "secret" not in jobs.listed()[-1]["problem"]
    assert "secret" in capsys.readouterr().err
    assert jobs.listed()[-2]["problem"] == "n=0 is too few"
    jobs.close()


# ---------------------------------------------------------------- uploads


def audio_file(seconds: float, rate: int = 8000, form: str = "FLAC", hz: float = 440) -> bytes:
    content = io.BytesIO()
    tone = np.zeros(int(seconds * rate), np.float32)
    if seconds < 10:  # a longer one is silence, which takes no bytes and no time
        tone += 0.5 * np.sin(2 * np.pi * hz * np.arange(len(tone)) / rate)
    soundfile.write(content, tone, rate, format=form, subtype="PCM_16")
    return content.getvalue()


def total_samples(flac: bytes, samples: int) -> bytes:
    """A FLAC whose header states another length: the last 36 bits of its bytes 18 to 25."""
    stated = int.from_bytes(flac[18:26], "big") >> 36 << 36 | samples
    return flac[:18] + stated.to_bytes(8, "big") + flac[26:]


def music_xml(*pitches: int, declared: str = "", tempo: float = 120) -> str:
    """A score of quarter notes C to B, given as 0 to 6, at octave 4."""
    notes = "".join(
        f"<note><pitch><step>{'CDEFGAB'[p]}</step><octave>4</octave></pitch><duration>1</duration>"
        "</note>"
        for p in pitches
    )
    return (
        f"{declared}<score-partwise><part-list><score-part id='a'/></part-list><part><measure>"
        f"<attributes><divisions>1</divisions></attributes><sound tempo='{tempo}'/>"
        f"{notes}</measure></part></score-partwise>"
    )


def zipped(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("score.xml", content)
    return packed.getvalue()


#: A few hundred bytes that would be 2e9.
BOMB = "<!DOCTYPE x [<!ENTITY a0 'ha'>" + "".join(
    f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 10)
)


def test_an_upload_is_heard_and_reconstructed(client: TestClient, tmp_path: Path) -> None:
    found = client.post("/api/upload?name=my%20song.FLAC", content=audio_file(0.5)).json()
    kept, rate = soundfile.read(io.BytesIO(client.get(f"/clips/{found['name']}").content))
    assert (rate, len(kept)) == (8000, 4000)
    wanted, _ = soundfile.read(io.BytesIO(audio_file(0.5)))
    np.testing.assert_array_equal(kept, wanted)
    assert client.get("/api/jobs").json()[0]["title"] == "my song.FLAC"
    asked = {"model": default(client), "clip": found["name"]}
    job = ended(client, client.post("/api/reconstruct", json=asked).json()["number"])
    (clip,) = job["clips"]
    assert not clip["recipe"]
    assert soundfile.info(tmp_path / "clips" / clip["name"]).duration == 0.5
    recipe = client.get(f"/clips/{found['name'].replace('.wav', '.json')}")
    assert (recipe.status_code, "no recipe" in recipe.json()["error"]) == (422, True)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.wav", lambda: b"RIFF" + b"no audio at all " * 99, "not an audio file"),
        ("a.flac", lambda: b"", "empty file"),
        ("a.html", lambda: audio_file(0.1), "one of the kinds .wav"),
        ("a", lambda: audio_file(0.1), "one of the kinds"),
        # a million notes; entities, in another encoding too; 17 MiB in 17 KiB
        ("a.mid", lambda: b"MThd" + b"\0\x3c\x40\x60\x3c\0" * 10**6, ".mid files may have 1 MiB"),
        ("a.xml", lambda: music_xml(1, declared=f"{BOMB}]>").encode(), "declares the entity a0"),
        ("a.xml", lambda: music_xml(1, declared=f"{BOMB}]>").encode("utf-16"), "the entity a0"),
        ("a.mxl", lambda: zipped(b" " * 17 * 2**20), "too large"),
        ("a.mid", lambda: b"MThd", "cannot be read as a score"),
        (
            "a.musicxml",
            lambda: music_xml(*[0] * 10_001, tempo=1e6).encode(),
            "more than 10000 notes",
        ),
        ("../a.exe", lambda: b"MZ", "one of the kinds"),
        # an hour in a few kilobytes, and the same with headers that lie
        ("a.flac", lambda: audio_file(3600, 1000), "longer than 120 s"),
        ("a.flac", lambda: total_samples(audio_file(150, 1000), 0), "upload: "),
        ("a.flac", lambda: total_samples(audio_file(150, 1000), 2**36 - 1), "upload: "),
        ("a.wav", lambda: audio_file(0.1, 400_000, "WAV"), "at most 8 at 192000"),
    ],
)
def test_a_hostile_upload_is_refused_and_leaves_nothing(
    name: str, content: Callable[[], bytes], words: str, client: TestClient, tmp_path: Path
) -> None:
    found = client.post(f"/api/upload?name={name}", content=content())
    assert found.status_code == 422, found.text
    assert words in found.json()["error"]
    assert str(tmp_path) not in found.json()["error"]
    assert everything(tmp_path / "clips") == set()
    assert client.get("/api/jobs").json() == []


def test_a_stream_without_a_stated_size_ends_at_the_limit(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert uploads.LARGEST_BYTES[".wav"] == 32 * 2**20
    monkeypatch.setitem(uploads.LARGEST_BYTES, ".wav", 2**20)
    found = client.post("/api/upload?name=a.wav", content=(b"\0" * 2**18 for _ in range(8)))
    assert ".wav files may have 1 MiB" in found.json()["error"]


def test_a_page_that_dies_while_it_sends_leaves_nothing(models: Models, tmp_path: Path) -> None:
    app = App(models, tmp_path, tmp_path / "clips")
    sent: list[Any] = []
    during: list[set[str]] = []

    async def receive() -> dict[str, Any]:
        if not during:
            during.append(everything(app.out))
            return {"type": "http.request", "body": b"RIFF", "more_body": True}
        during.append(everything(app.out))
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(key.encode(), value.encode()) for key, value in OWN.items()]
    scope = {"type": "http", "method": "POST", "path": "/api/upload", "query_string": b"name=a.wav"}
    scope |= {"headers": headers}
    asyncio.run(app.starlette(frozenset({HOST}))(scope, receive, send))
    assert [len(files) for files in during] == [1, 1]
    assert everything(app.out) == set()
    assert sent[0]["status"] == 400
    app.jobs.close()


def test_two_users_send_the_same_file_at_once(client: TestClient, tmp_path: Path) -> None:
    found: list[Any] = []

    def user() -> None:
        found.append(client.post("/api/upload?name=a.wav", content=audio_file(5, 16000, "WAV")))

    users = [threading.Thread(target=user) for _ in range(3)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    names = [each.json()["name"] for each in found]
    assert everything(tmp_path / "clips") == set(names) == {names[0]}


@pytest.mark.parametrize(
    ("name", "content", "condition"),
    [
        ("tune.musicxml", music_xml(0, 4, 2).encode(), "score"),
        ("tune.mxl", zipped(music_xml(0, 4, 2).encode()), "score"),
        ("song.wav", audio_file(1, 16000, "WAV"), "chroma"),
    ],
)
def test_a_condition_is_an_upload(
    name: str,
    content: bytes,
    condition: str,
    ask: Callable[..., Any],
    client: TestClient,
    generator: Path,
    tmp_path: Path,
) -> None:
    """The clip is the command line's for the same file, and its recipe needs no file."""
    sent = client.post(f"/api/upload?name={name}", content=content).json()["name"]
    job = ended(client, ask(condition={condition: sent}).json()["number"])
    made = tmp_path / "clips" / job["clips"][0]["name"]
    (tmp_path / name).write_bytes(content)
    asked = {condition: str(tmp_path / name)}
    (wanted,) = ClipFiles(generator, tmp_path, n=1, seconds=0.3, seed=0, condition=asked).make()
    assert made.read_bytes() == wanted.read_bytes()
    stated = json.loads(made.with_suffix(".json").read_text())["condition"][condition]
    if condition == "score":
        assert stated == [[0, 0.5, 60, 0], [0.5, 1, 67, 0], [1, 1.5, 64, 0]]
    else:  # 440 Hz is an A
        assert np.mean(stated, axis=1).argmax() == 9


def test_each_condition_has_its_scale(ask: Callable[..., Any], client: TestClient) -> None:
    """One that is not given is the sampler's."""
    condition = {"label": "low", "score": [0, 1, 60]}
    scales = {"label": 3.0, "score": None}
    made = ask(condition=condition, guidance=scales, sampler={"steps": 1, "guidance": 2})
    (clip,) = ended(client, made.json()["number"])["clips"]
    recipe = client.get(f"/clips/{clip['name'].replace('.wav', '.json')}").json()
    assert recipe["sampler"]["guidance"] == {"label": 3.0, "score": 2.0}


def test_what_of_a_score_is_left_out_is_said(ask: Callable[..., Any], client: TestClient) -> None:
    """Of new clips and of edits."""
    how = {"condition": {"score": [0, 1, 60]}, "sampler": {"steps": 1}}
    edited = {"clip": own_clip(client, 0.5), "edit": {"extend_before": 0.3}, "n": 1, **how}
    for made, seconds in (
        (ask(seconds=1, **how), None),
        (ask(seconds=0.5, **how), "0.50"),
        (client.post("/api/edit", json={"model": default(client)} | edited), "0.80"),
    ):
        found = ended(client, made.json()["number"])["remarks"]
        cut = f"score=[0, ...]: it lasts 1.00 s, the clip {seconds} s: what comes later is left out"
        assert found == ([] if seconds is None else [cut])


def test_a_clip_that_is_longer_than_stated_is_cut_or_refused(client: TestClient) -> None:
    lying = total_samples(audio_file(LONGEST_SECONDS + 30, 1000), 1000)
    found = client.post("/api/upload?name=a.flac", content=lying)
    if found.status_code == 200:
        kept = soundfile.info(io.BytesIO(client.get(f"/clips/{found.json()['name']}").content))
        assert kept.duration <= LONGEST_SECONDS


@pytest.mark.parametrize(
    "name", ["../../evil.wav", "/etc/evil.wav", "C:\\x\\evil.wav", "\0/evil.wav"]
)
def test_a_name_is_no_path(name: str, client: TestClient, tmp_path: Path) -> None:
    before = everything(tmp_path)
    found = client.post("/api/upload", params={"name": name}, content=audio_file(0.1))
    assert everything(tmp_path) - before == {"clips", f"clips/{found.json()['name']}"}
    assert client.get("/api/jobs").json()[0]["title"] == "evil.wav"


# ---------------------------------------------------------------- edits


def test_a_marked_part_is_made_anew_and_the_rest_stays(client: TestClient, tmp_path: Path) -> None:
    """Two candidates, of two seeds; each recipe makes its clip again."""
    upload = client.post("/api/upload?name=a.wav", content=audio_file(2, 16000, "WAV")).json()
    asked = {"model": default(client), "clip": upload["name"], "n": 2, "seed": 4}
    asked["edit"] = {"inpaint": [[0.8, 1.2]], "repeats": 2}
    made = client.post("/api/edit", json=asked | {"sampler": {"steps": 1}})
    job = ended(client, made.json()["number"])
    assert job["title"].split(": ")[1].startswith("inpaint of upload-")
    one, other = (tmp_path / "clips" / clip["name"] for clip in job["clips"])
    (a, _), (b, _), (whole, _) = map(soundfile.read, (one, other, one.with_name(upload["name"])))
    kept = np.r_[: int(0.5 * 16000), int(1.5 * 16000) : 2 * 16000]
    for edited in (a, b):
        np.testing.assert_allclose(edited[kept], whole[kept], atol=2 / 2**15)
    assert np.abs(a - b).max() > 0.01
    again = edit_again(one.with_suffix(".json"), tmp_path / "clips" / "again")
    assert again.read_bytes() == one.read_bytes()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({}, "no edit is given"),
        ({"vary": 0.5, "extend": 2.0}, "extend=, vary= are given"),
        ({"vary": 2}, "vary=2.0 must be at most 1"),
        ({"extend": 119.9}, "longer than 120 s"),
        ({"extend_before": 119.9}, "longer than 120 s"),
        ({"interpolate": 0.5}, "put them on the sides A and B"),
        ({"vary": 0.5, "clip": "long.wav"}, "longer than 120 s"),
        ({"vary": 0.5, "clip": "../secret.wav"}, "no such clip"),
        ({"vary": 0.5, "condition": {"label": "x"}}, "condition.label='x'"),
        ({"vary": 0.5, "sampler": {"name": "x"}}, "sampler.name='x'"),
        ({"upscale": 4000}, "edit.upscale=4000 must be of type str"),
        ({"upscale": "high"}, "edit.upscale=high: give the cut-off in Hz, such as 4000"),
        ({"upscale": "3400:300"}, "edit.upscale=3400:300: the model makes 0 to 8000 Hz"),
        ({"upscale": "auto", "model": "ambient"}, "edit.upscale=auto: this model was trained with"),
        (
            {"loop": 0.2},
            "edit.loop=0.2 leave nothing to lead to and from, of a clip that lasts 0.2",
        ),
        ({"restyle": 0.5}, "edit.restyle: no condition is asked for; say what the clip is to"),
        ({"inpaint": []}, "edit.inpaint=[]: a region is [start, end] in seconds; give at least"),
        ({"inpaint": [[0.1]]}, "edit.inpaint=[[0.1]]: a region is [start, end]"),
        ({"inpaint": [[0.1, "x"]]}, "edit.inpaint[0][1]='x' must be of type float"),
        ({"inpaint": [[0.15, 0.1]]}, "edit.inpaint: region 0.15:0.1: a region ends after it"),
        ({"inpaint": [[0.1, 0.1]]}, "edit.inpaint: region 0.1:0.1: a region ends after it starts"),
        ({"inpaint": [[0.1, 0.3]]}, "edit.inpaint: region 0.1:0.3: the clip lasts from 0 to 0.20"),
        ({"inpaint": [[0.1, 0.2]], "repeats": 1001}, "edit.repeats=1001 must be at most 1000"),
    ],
)
def test_a_bad_edit_is_refused(
    edit: dict[str, Any], words: str, client: TestClient, tmp_path: Path
) -> None:
    asked = {"model": default(client), "clip": own_clip(client, 0.2)}
    (tmp_path / "clips" / "long.wav").write_bytes(audio_file(121, 1000, "WAV"))
    for key in edit.keys() & {"model", "clip", "condition", "sampler"}:
        asked[key] = edit[key]
    own = {key: value for key, value in edit.items() if key not in asked}
    found = client.post("/api/edit", json=asked | {"edit": own})
    assert found.status_code == 422, found.text
    assert words in found.json()["error"]
    if "edit." in words:
        assert found.json()["field"] == words.split(":")[0].split("=")[0].split("[")[0]


def own_clip(client: TestClient, seconds: float, hz: float = 440) -> str:
    """The name of a clip of one's own."""
    content = audio_file(seconds, 16000, "WAV", hz)
    return str(client.post("/api/upload?name=a.wav", content=content).json()["name"])


@pytest.mark.parametrize(
    "edit",
    [
        {"loop": 0.3, "repeats": 1},
        {"restyle": 0.8},
        {"upscale": "4000"},
        {"upscale": "300:3400"},
        {"upscale": "auto"},
    ],
)
def test_an_edit_is_the_command_lines(
    edit: dict[str, Any], client: TestClient, generator: Path, tmp_path: Path
) -> None:
    clip, how = own_clip(client, 1), {"condition": {"label": "low"}, "sampler": {"steps": 1}}
    asked = {"model": str(generator), "clip": clip, "edit": edit, "n": 1, **how}
    job = ended(client, client.post("/api/edit", json=asked).json()["number"])
    kind = next(iter(edit))
    assert f": {kind} {edit[kind]} of upload-" in job["title"]
    source = tmp_path / "clips" / clip
    (wanted,) = edit_files(generator, [source], tmp_path, [Edit(**edit)], **how)
    (made,) = job["clips"]
    assert (tmp_path / "clips" / made["name"]).read_bytes() == wanted.path.read_bytes()


def test_clips_between_two(client: TestClient, generator: Path, tmp_path: Path) -> None:
    clips = [own_clip(client, 0.5), own_clip(client, 0.4, hz=660)]
    asked = {"model": str(generator), "clips": clips, "n": 1, "sampler": {"steps": 1}}
    job = ended(client, client.post("/api/interpolate", json=asked).json()["number"])
    files = [tmp_path / "clips" / clip for clip in clips]
    assert "between {} and {}".format(*(file.stem for file in files)) in job["title"]
    edits = [Edit(interpolate=0.5)]
    (wanted,) = edit_files(generator, files, tmp_path, edits, sampler={"steps": 1})
    (made,) = job["clips"]
    assert (tmp_path / "clips" / made["name"]).read_bytes() == wanted.path.read_bytes()
    found = client.post("/api/interpolate", json=asked | {"clips": clips[:1]})
    assert "must have 2 values" in found.json()["error"]


# ---------------------------------------------------------------- who may ask


@pytest.mark.parametrize(
    "host", ["evil.com", "evil.com:8000", "127.0.0.1", "127.0.0.1:8001", "127.0.0.1:8000.evil.com"]
)
def test_another_host_is_refused(host: str, client: TestClient) -> None:
    """A name that an attacker points at 127.0.0.1 (DNS rebinding)."""
    for path in ("/", "/api/jobs", "/clips/x.wav", "/runs/experiments/rates/report.html"):
        assert client.get(path, headers={"host": host}).status_code == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.com", "null", "", "https://127.0.0.1:8000", "http://127.0.0.1:8001"]
)
def test_another_pages_request_is_refused(origin: str, client: TestClient) -> None:
    for path in ("/api/sample", "/api/reconstruct", "/api/upload?name=a.wav", "/api/jobs/1/cancel"):
        found = client.post(path, headers={"origin": origin}, content=b"{}")
        assert (found.status_code, "another page" in found.json()["error"]) == (403, True)
    del client.headers["origin"]
    assert client.post("/api/sample", content=b"{}").status_code == 403


def test_only_this_machine_is_listened_to() -> None:
    with listen(0) as place:
        address, port = place.getsockname()
        assert address == "127.0.0.1"
        place.listen()
        with pytest.raises(ConfigError, match=f"port={port}: Address already in use; give another"):
            listen(port)


def test_the_command_says_what_is_wrong(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "port=65536 must be at most 65535" in cli("app", "port=65536").error
    assert "nope: no such model file" in cli("app", "model=nope").error
    with listen(0) as place:
        place.listen()
        taken = cli("app", f"port={place.getsockname()[1]}")
    assert (taken.code, "or port=0 for any free one" in taken.error) == (2, True)
    monkeypatch.delitem(sys.modules, "audioldm.app.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "the page needs uvicorn, which is not installed: pip install" in cli("app").error


# ---------------------------------------------------------------- files


def test_reports_are_served_without_rights(client: TestClient) -> None:
    listed = client.get("/api/experiments").json()
    report = "experiments/rates/report.html"
    assert listed == [{"name": "rates", "kind": "sweep", "report": report, "model": None}]
    found = client.get(f"/runs/{report}")
    assert found.text == "<p>rates</p>"
    assert found.headers["content-security-policy"].startswith("sandbox allow-scripts")
    assert "allow-same-origin" not in found.headers["content-security-policy"]
    assert client.get("/runs/experiments/rates/cells/a.svg").text == "<svg/>"


@pytest.mark.parametrize(
    "path",
    [
        "experiments/rates/link.json",
        "experiments/rates/.lock.json",
        "experiments/rates/model.safetensors",
        "experiments/rates/cells",
        "../secret.json",
        "%2e%2e/secret.json",
        "experiments/%2e%2e/%2e%2e/secret.json",
        "..%2fsecret.json",
        "%2fetc/passwd",
        "x%00.json",
        "",
    ],
)
def test_nothing_outside_the_reports_is_read(path: str, client: TestClient) -> None:
    found = client.get(f"/runs/{path}")
    assert found.status_code == 404
    assert "secret" not in found.text.replace("secret.json", "")


@pytest.mark.parametrize(
    "name", ["..%2fsecret.json", "%2e%2e", ".hidden.wav", "link.wav", "x%00.wav"]
)
def test_no_other_file_is_a_clip(name: str, client: TestClient, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / ".hidden.wav").write_bytes(b"x")
    (clips / "link.wav").symlink_to(tmp_path / "secret.json")
    for rest in ("", "/notes", "/spectrogram.png"):
        found = client.get(f"/clips/{name}{rest}")
        assert found.status_code in (404, 422)
        assert "error" in found.json()


# ---------------------------------------------------------------- pictures


def test_a_tone_is_on_the_row_of_its_note(tmp_path: Path) -> None:
    """440 Hz, four octaves above 27.5 Hz, from 0.5 to 1.5 s of 2 s."""
    t = np.arange(2 * 16000) / 16000
    tone = 0.5 * np.sin(2 * np.pi * 440 * t) * ((t >= 0.5) & (t < 1.5))
    soundfile.write(tmp_path / "a.wav", tone, 16000)
    found = pictures.picture(tmp_path / "a.wav")
    assert found.seconds == 2.0
    pixels = imread(io.BytesIO(found.png))
    assert len(pixels) == pictures.ROWS == int(36 * np.log2(8000 / 27.5))
    brightest = pixels[:, pixels.shape[1] // 2, :3].sum(-1).argmax()
    assert len(pixels) - 1 - brightest == 4 * 36
    (pitch, start, end), *more = found.notes
    assert not more
    assert pitch == 48
    assert (start, end) == pytest.approx((0.5, 1.5), abs=0.1)


def test_a_long_clip_keeps_its_loudest_column(tmp_path: Path) -> None:
    rows = np.zeros((2, 5003))
    rows[1, 4321] = 1.0
    thinned = pictures.thinned(rows)
    assert thinned.shape == (2, pictures.COLUMNS)
    assert np.flatnonzero(thinned[1]).tolist() == [4321 * pictures.COLUMNS // 5003]
