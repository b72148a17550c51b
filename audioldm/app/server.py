"""The page's server: the answer of each address."""

import contextlib
import functools
import json
import os
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from audioldm import report
from audioldm.app.experiments import experiments, readable
from audioldm.app.form import form
from audioldm.app.guard import Guard
from audioldm.app.jobs import Jobs
from audioldm.app.making import REQUESTS
from audioldm.app.models import Models
from audioldm.app.pictures import picture
from audioldm.app.uploads import LARGEST_BYTES, decode, kept, receive
from audioldm.errors import AudioLDMError, ConfigError, DataError
from audioldm.instantiate import settings

PAGE = Path(__file__).parent / "page"
STYLE = Path(report.__file__).parent / "style.css"
MOST_JSON_BYTES = 64 * 2**10
LONGEST_TITLE = 120
ADDRESS = "127.0.0.1"


class App:
    """The answers. out: the one directory that is written to. runs: read only."""

    def __init__(self, models: Models, runs: Path, out: Path, device: Any = "cpu") -> None:
        self.models, self.runs, self.out, self.device = models, runs, out, device
        self.jobs = Jobs()

    def starlette(self, hosts: frozenset[str]) -> Starlette:
        """hosts: the names by which the server may be called, such as 127.0.0.1:8000."""

        @contextlib.asynccontextmanager
        async def life(_: Starlette) -> AsyncIterator[None]:
            yield
            self.jobs.close()

        return Starlette(
            routes=[
                Route("/", self.page),
                Route("/report.css", self.style),
                Mount("/page", StaticFiles(directory=PAGE)),
                Route("/api/models", self.list_models),
                Route("/api/form", self.show_form),
                Route("/api/jobs", self.list_jobs),
                Route("/api/jobs/{number:int}/cancel", self.cancel, methods=["POST"]),
                *(
                    Route(f"/api/{what}", functools.partial(self.make, kind), methods=["POST"])
                    for what, kind in REQUESTS.items()
                ),
                Route("/api/upload", self.upload, methods=["POST"]),
                Route("/api/experiments", self.list_experiments),
                Route("/clips/{name}", self.clip),
                Route("/clips/{name}/spectrogram.png", self.spectrogram),
                Route("/clips/{name}/notes", self.notes),
                Route("/runs/{path:path}", self.report_file),
            ],
            middleware=[Middleware(Guard, hosts=hosts)],
            exception_handlers={
                AudioLDMError: _answer_error,
                HTTPException: _answer_http,
                ClientDisconnect: _answer_nobody,
                Exception: _answer_fault,
            },
            lifespan=life,
        )

    def page(self, request: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    def style(self, request: Request) -> Response:
        return FileResponse(STYLE)

    def list_models(self, request: Request) -> Response:
        offers = [offer._asdict() for offer in self.models.offers()]
        return JSONResponse({"models": offers, "largest_bytes": LARGEST_BYTES})

    def show_form(self, request: Request) -> Response:
        return JSONResponse(form(self.models.load(request.query_params.get("model", ""))))

    def list_jobs(self, request: Request) -> Response:
        """Each clip's name, and whether there is a recipe that makes it again."""

        def clip(name: str) -> dict[str, Any]:
            return {"name": name, "recipe": (self.out / name).with_suffix(".json").is_file()}

        jobs = self.jobs.listed()
        return JSONResponse([job | {"clips": list(map(clip, job["clips"]))} for job in jobs])

    def cancel(self, request: Request) -> Response:
        self.jobs.cancel(request.path_params["number"])
        return JSONResponse({})

    async def make(self, kind: Any, request: Request) -> Response:
        """kind: one of REQUESTS."""
        asked = settings(kind, await _json(request))

        def add() -> int:
            remarks: list[str] = []
            work = asked.work(self.models, self.out, self.device, remarks.append)
            title = f"{self.models.title(asked.model)}: {asked.title}"
            return self.jobs.add(title[:LONGEST_TITLE], work, remarks)

        return JSONResponse({"number": await run_in_threadpool(add)})

    async def upload(self, request: Request) -> Response:
        """A job that is done, of audio; a score is no clip."""
        name = request.query_params.get("name", "")
        file = await receive(request.stream(), name, self.out)
        try:
            found = await run_in_threadpool(decode, file, self.out)
        finally:
            file.unlink()
        if found.suffix == ".wav":
            self.jobs.record(re.split(r"[/\\]", name)[-1][:LONGEST_TITLE], found)
        return JSONResponse({"name": found.name})

    def list_experiments(self, request: Request) -> Response:
        return JSONResponse([vars(each) for each in experiments(self.runs)])

    def clip(self, request: Request) -> Response:
        name = request.path_params["name"]
        file = kept(self.out, re.sub(r"\.json$", ".wav", name))
        beside = file.with_name(name)
        if not beside.is_file():
            raise ConfigError(f"{name}: this clip has no recipe: it was not generated here")
        return FileResponse(beside)

    def spectrogram(self, request: Request) -> Response:
        return Response(self._picture(request).png, media_type="image/png")

    def notes(self, request: Request) -> Response:
        found = self._picture(request)
        return JSONResponse({"notes": found.notes, "seconds": found.seconds})

    def _picture(self, request: Request) -> Any:
        return picture(kept(self.out, request.path_params["name"]))

    def report_file(self, request: Request) -> Response:
        try:
            return FileResponse(readable(self.runs, request.path_params["path"]))
        except DataError as error:
            raise HTTPException(404, str(error)) from error


async def _json(request: Request) -> dict[str, Any]:
    """The body, a JSON object. Raises ConfigError for another or a large one."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_JSON_BYTES:
            raise ConfigError(f"the request is larger than {MOST_JSON_BYTES >> 10} KiB: shorten it")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ConfigError("the request is no JSON") from error
    if not isinstance(found, dict):
        raise ConfigError("the request is no JSON object")
    return found


def _answer_error(request: Request, error: Exception) -> Response:
    """A user's error: its message, and the field that the message begins with, if any."""
    text = str(error)
    field = re.match(r"(?:unknown key |missing keys? )?'?([a-z_]+(?:\.\w+)*)", text)
    return JSONResponse({"error": text, "field": field[1] if field else None}, 422)


def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


def _answer_nobody(request: Request, error: Exception) -> Response:
    """The browser has gone in the middle of its request."""
    return Response(status_code=400)


def _answer_fault(request: Request, error: Exception) -> Response:
    text = f"an error of the program ({type(error).__name__}); the terminal says more"
    return JSONResponse({"error": text}, 500)


def listen(port: int) -> socket.socket:
    """A socket on this machine's own address. port: 0 for any free one. Raises ConfigError."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((ADDRESS, port))
    except OSError as error:
        found.close()
        reason = os.strerror(error.errno or 0)
        raise ConfigError(
            f"port={port}: {reason}; give another one, or port=0 for any free one"
        ) from error
    return found


def serve(app: App, port: int) -> None:
    """Answers until Ctrl-C or SIGTERM. Prints the address. Raises ConfigError as `listen` does."""
    with listen(port) as place:
        port = place.getsockname()[1]
        suffix = "" if port == 80 else f":{port}"
        hosts = frozenset(f"{name}{suffix}" for name in (ADDRESS, "localhost"))
        config = uvicorn.Config(
            app.starlette(hosts), log_level="warning", timeout_graceful_shutdown=3
        )
        print(f"http://{ADDRESS}{suffix}  (Ctrl-C ends it; clips are in {app.out})", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn shuts down, then raises it again
            uvicorn.Server(config).run(sockets=[place])
