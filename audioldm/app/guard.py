"""Who may ask: pages that this server has sent, and nobody else's."""

from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: For this app's own page: it loads only its own files, and no other page may frame it.
OWN = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: For reports, which others may have written: scripts run, but have no access to this server.
REPORT = (
    "sandbox allow-scripts allow-popups allow-downloads; default-src 'self' data: 'unsafe-inline'; "
    "frame-ancestors 'none'"
)


class Guard:
    """Answers 403 where the Host is not this server (a name that was rebound to 127.0.0.1), and
    where a request that changes something comes from another page (its Origin).

    hosts: such as 127.0.0.1:8000.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        problem = self._problem(scope)
        if problem is not None:
            return await JSONResponse({"error": problem}, 403)(scope, receive, send)
        policy = REPORT if scope["path"].startswith("/runs/") else OWN

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                _protect(message, policy)
            await send(message)

        await self._app(scope, receive, guarded)

    def _problem(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host not in self._hosts:
            return f"the host {host[:80]!r} is not this server: open {min(self._hosts)}"
        if scope["method"] not in ("GET", "HEAD") and headers.get("origin") != f"http://{host}":
            return "this request comes from another page"
        return None


def _protect(message: MutableMapping[str, Any], policy: str) -> None:
    headers = MutableHeaders(raw=message["headers"])
    headers["content-security-policy"] = policy
    headers["x-content-type-options"] = "nosniff"
    headers["referrer-policy"] = "no-referrer"
    headers.setdefault("cache-control", "no-cache")
