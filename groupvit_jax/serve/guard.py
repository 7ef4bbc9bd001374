"""Bounds on requests before Gradio sees them, and no request of the page beyond its own server."""

import asyncio
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

# Gradio's routes that would write an upload to a folder, or fetch from another server.
_CLOSED = ("/gradio_api/upload", "/gradio_api/proxy=", "/gradio_api/stream")
# Gradio's page has inline scripts and compiles the scripts of its HTML components.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; "
    "base-uri 'self'; form-action 'self'; object-src 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    """ASGI middleware: bounds on the size, number and time of requests, and the security policy."""

    def __init__(self, app: Any, *, bytes_each: int, bytes_all: int, seconds: float) -> None:
        """Wrap an application.

        Args:
          app: the application.
          bytes_each: size of a request's body.
          bytes_all: size of all bodies that are being read or answered at a time.
          seconds: time in which a body must arrive.
        """
        self._app, self._each, self._all, self._seconds = app, bytes_each, bytes_all, seconds
        self._held = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        # Start and end of the application, and websockets.
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if scope["path"].startswith(_CLOSED):
            refusal = PlainTextResponse("This page keeps no files.", 404)
            await refusal(scope, receive, send_with_headers)
        elif scope["method"] in ("POST", "PUT", "PATCH"):
            await self._with_body(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)

    async def _with_body(self, scope: Any, receive: Any, send: Any) -> None:
        declared = Headers(scope=scope).get("content-length", "0")
        refusal = self._refusal(int(declared) if declared.isdecimal() else 0)
        body, more = bytearray(), True
        try:
            try:
                async with asyncio.timeout(self._seconds):
                    while more and refusal is None:
                        message = await receive()
                        if message["type"] != "http.request":  # the visitor is gone
                            return
                        chunk = message.get("body", b"")
                        # Counted as it comes: a body need not declare its size, or the true one.
                        refusal = self._refusal(len(chunk), len(body))
                        body += chunk
                        self._held += len(chunk)
                        more = message.get("more_body", False)
            except TimeoutError:
                refusal = PlainTextResponse("The upload took too long.", 408)
            if refusal is None:
                await self._app(scope, _replayed(bytes(body), receive), send)
            else:
                await refusal(scope, receive, send)
        finally:
            self._held -= len(body)

    def _refusal(self, more: int, before: int = 0) -> PlainTextResponse | None:
        """Return the answer to a body that `more` bytes would make too large, after `before`."""
        if before + more > self._each:
            most = self._each / 1e6
            return PlainTextResponse(f"More than {most:.0f} megabytes: too large an upload.", 413)
        if self._held + more > self._all:
            return PlainTextResponse("The page is busy; try again in a moment.", 503)
        return None


def _replayed(body: bytes, receive: Any) -> Any:
    """Return an ASGI `receive` that gives a body already read, then what follows it."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Any:
        return messages.pop() if messages else await receive()

    return replay
