"""The page's web server: one process, this machine unless told otherwise."""

import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import fastapi
import uvicorn

from groupvit_jax.serve.guard import Guard
from groupvit_jax.serve.page import Page

_FIRST_PORT, _PORTS = 7860, 100
# Base64 makes a photo a third larger; the rest is room for the settings.
_ENCODED, _ROOM = 4 / 3, 1_000_000
_UPLOADS_AT_ONCE = 4
_CONNECTIONS = 256


def open_socket(host: str, port: int | None) -> socket.socket:
    """Return a listening socket on a port, or on the first free one from 7860 on.

    Raises:
      OSError: the port is taken, none is free, or the host is none of this machine's.
    """
    for candidate in [port] if port is not None else range(_FIRST_PORT, _FIRST_PORT + _PORTS):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        # A page that is started again at once would find its port still taken.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen(128)
        except OSError as error:
            listener.close()
            if port is not None or error.errno != errno.EADDRINUSE:
                raise OSError(f"{host}:{candidate}: {error.strerror}") from error
        else:
            return listener
    raise OSError(f"{host}: ports {_FIRST_PORT} to {_FIRST_PORT + _PORTS - 1} are all taken")


def address(listener: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_app(page: Page) -> fastapi.FastAPI:
    """Return the page as an application. Call it within `private_cache`."""
    # Gradio takes a second to import, and reads its environment then.
    import gradio as gr

    from groupvit_jax.serve import interface

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    each = int(_ENCODED * page.limits.megabytes * 1e6) + _ROOM
    bounds = {"bytes_each": each, "bytes_all": _UPLOADS_AT_ONCE * each}
    app.add_middleware(Guard, seconds=page.limits.seconds, **bounds)
    # `run_history` would keep every photo in the visitor's browser.
    return gr.mount_gradio_app(
        app,
        interface.build(page),
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        theme=interface.theme(),
        css=interface.css(),
    )


@contextlib.contextmanager
def private_cache() -> Iterator[str]:
    """Give Gradio a folder for its files that ends with this process, and no network.

    Photos come in events and leave in answers, so that the folder stays empty; it is there for
    whatever Gradio itself writes.
    """
    with tempfile.TemporaryDirectory(prefix="groupvit_jax_serve_") as folder:
        quiet = {
            "GRADIO_TEMP_DIR": folder,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_RUN_HISTORY": "False",
            "GRADIO_SHARE": "False",
            "HF_HUB_OFFLINE": "1",
        }
        before = {name: os.environ.get(name) for name in quiet}
        os.environ.update(quiet)
        try:
            yield folder
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def make_server(app: Any) -> uvicorn.Server:
    """Return the server of an application; `run(sockets=[...])` serves until it is stopped."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=3,
    )
    return uvicorn.Server(config)
