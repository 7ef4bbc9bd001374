import asyncio

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from groupvit_jax.serve.guard import Guard


async def _echo(request):
    return PlainTextResponse(str(len(await request.body())))


def make_app(**bounds):
    options = {"bytes_each": 100, "bytes_all": 150, "seconds": 60.0} | bounds
    routes = [Route(path, _echo, methods=["GET", "POST"]) for path in ("/", "/gradio_api/upload/x")]
    return Starlette(routes=routes, middleware=[Middleware(Guard, **options)])


async def ask(app, chunks=(b"",), path="/", method="POST", declared=None, hang=False):
    """Sends a request in chunks; returns status, headers and body of the answer."""
    left, sent = list(chunks), []

    async def receive():
        if hang:
            await asyncio.Event().wait()
        if not left:
            return {"type": "http.disconnect"}
        body = left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    headers = [] if declared is None else [(b"content-length", str(declared).encode())]
    scope = {
        "type": "http", "method": method, "path": path, "headers": headers, "query_string": b"",
        "http_version": "1.1", "scheme": "http", "root_path": "",
    }  # fmt: skip
    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], dict(sent[0]["headers"]), body.decode()


def test_a_body_within_the_bounds_passes_whole():
    assert asyncio.run(ask(make_app(), [b"x" * 40, b"y" * 60]))[::2] == (200, "100")


def test_a_large_body_is_refused_whether_it_is_declared_or_not():
    for options in ({"declared": 101}, {}, {"declared": 3}, {"declared": "text"}):
        status, _, body = asyncio.run(ask(make_app(), [b"x" * 60, b"y" * 60], **options))
        assert (status, body) == (413, "More than 0 megabytes: too large an upload.")


def test_bodies_of_all_visitors_together_are_bounded():
    app = make_app(bytes_all=90)
    assert asyncio.run(ask(app, [b"x" * 95]))[0] == 503
    # Nothing is held by requests that have ended.
    assert [asyncio.run(ask(app, [b"x" * 80]))[0] for _ in range(3)] == [200] * 3


def test_a_body_that_does_not_come_is_given_up():
    status, _, body = asyncio.run(ask(make_app(seconds=0.01), hang=True))
    assert (status, body) == (408, "The upload took too long.")


def test_routes_that_write_files_are_closed():
    assert asyncio.run(ask(make_app(), path="/gradio_api/upload/x"))[0] == 404


def test_every_answer_forbids_requests_to_other_servers():
    for path, method in (("/", "GET"), ("/", "POST"), ("/gradio_api/upload/x", "POST")):
        _, headers, _ = asyncio.run(ask(make_app(), path=path, method=method))
        assert headers[b"content-security-policy"].startswith(b"default-src 'self'")
