"""Drives the page in Chromium as visitors do; any request off the loopback fails a test."""

import contextlib
import io
import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from groupvit_jax.serve import server
from groupvit_jax.serve.page import Page
from tests.compare import browser as browsers
from tests.data.image_files import encode, photo, solid_grey_jpeg
from tests.serve import models
from tests.serve.models import LABELS
from tests.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.slow

VOCABULARY = ("sea", "sand", "dog")
_FAKE_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@pytest.fixture(scope="module")
def served():
    """A page with a tiny model: its address, its cache, and itself."""
    with server.open_socket("127.0.0.1", 0) as listener, server.private_cache() as folder:
        page = Page(models.segmenter(), labels=LABELS, vocabulary=VOCABULARY)
        running = server.make_server(server.make_app(page))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_until(lambda: running.started)
        yield server.address(listener), Path(folder), page
        running.should_exit = True
        thread.join()
        page.close()


@pytest.fixture(scope="module")
def chromium():
    arguments = ["--no-sandbox", "--disable-dev-shm-usage", *_FAKE_CAMERA]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=browsers.find(), args=arguments)
        expect.set_options(timeout=1000 * PATIENCE)
        yield running
        running.close()


@contextlib.contextmanager
def visitor(chromium, served, width=1280):
    """A person with the page open; at the end no request or error may have gone astray."""
    address, folder, _ = served
    context = chromium.new_context(viewport={"width": width, "height": 900})
    context.set_default_timeout(1000 * PATIENCE)
    window, strays = context.new_page(), []

    def check(request):
        if not request.url.startswith((f"{address}/", "data:", f"blob:{address}/")):
            strays.append(request.url)

    window.on("request", check)
    window.on("pageerror", lambda error: strays.append(str(error)))
    window.on("console", lambda line: strays.append(line.text) if line.type == "error" else None)
    window.goto(address)
    expect(window.locator("#drop .target")).to_be_visible()
    expect(window.locator("#view .view")).to_be_attached()
    # Gradio connects events when all components are there, these last.
    expect(window.locator("#labels input")).to_be_visible()
    yield window
    assert strays == []
    # Nothing is kept: neither on this machine nor in the browser.
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    assert window.evaluate("indexedDB.databases().then(all => all.length)") == 0
    assert (
        window.evaluate("JSON.stringify({...localStorage, ...sessionStorage})").count("data:") == 0
    )
    context.close()


def send(window, *files):
    """Chooses files, each a name and its bytes."""
    chosen = [{"name": n, "mimeType": "image/png", "buffer": data} for n, data in files]
    window.locator("#drop input[type=file]").set_input_files(chosen)


def shown(window, number):
    expect(window.locator(f"#view [data-shown='{number}']")).to_be_attached()
    # A later answer first takes the mark of an earlier one away.
    expect(window.locator("#view .busy")).to_have_count(0)


def legend(window):
    return window.locator("#view .legend button").all_inner_texts()


def add_label(window, text):
    window.locator("#labels input").click()
    window.keyboard.type(text)
    window.keyboard.press("Enter")
    window.keyboard.press("Escape")


def download(window, name):
    with window.expect_download() as started:
        window.get_by_role("button", name=f"Download {name}").click()
    return started.value.suggested_filename, Path(started.value.path()).read_bytes()


def in_picture(window, image, y, x):
    """The window's coordinates of a pixel."""
    box = window.locator("#view canvas").bounding_box()
    height, width = image.shape[:2]
    return (
        box["x"] + (x + 0.5) / width * box["width"],
        box["y"] + (y + 0.5) / height * box["height"],
    )


def test_upload_labels_threshold_click_and_download(chromium, served):
    image, segmenter = photo(60, 80), served[2].segmenter
    with visitor(chromium, served) as window:
        send(window, ("my photo.png", encode(image, "PNG")))
        shown(window, 1)
        expected = segmenter(image, LABELS)
        shares = [name for name in expected.shares()]
        assert [text.split("\n")[0] for text in legend(window)] == shares

        window.mouse.move(*in_picture(window, image, 30, 40))
        expect(window.locator("#view .tip")).to_have_text(LABELS[expected.mask[30, 40]])
        window.mouse.click(*in_picture(window, image, 30, 40))
        group = expected.groups[-1][30, 40]
        nearest = segmenter.name_groups(expected, tuple(dict.fromkeys((*VOCABULARY, *LABELS))))
        names = window.locator("#view .named li span")
        expect(names).to_have_text([name for name, _ in nearest[group]])

        add_label(window, "cat, red mat")
        expect(window.locator("#labels .token")).to_have_text([*LABELS, "cat", "red mat"])
        more = (*LABELS, "cat", "red mat")
        # Its text has the labels found and those not found.
        expect(window.locator("#view .legend")).to_contain_text("red mat")
        shown(window, 1)
        name, data = download(window, "mask")
        assert name == "my_photo_mask.png"
        found = np.asarray(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(found, segmenter(image, more).mask)

        window.get_by_label("Background").check()
        expect(window.locator("#view .legend")).to_contain_text("background")
        window.locator("#threshold input[type=number]").fill("0.3")
        window.locator("#threshold input[type=number]").press("Enter")
        expected = segmenter.with_background(0.3)(image, more)
        share = f"{100 * (expected.mask == 0).mean():.0f}"
        expect(window.locator("#view .legend")).to_contain_text(
            re.compile(rf"background\s*{share}")
        )
        _, data = download(window, "labels")
        assert json.loads(data) == {"labels": ["background", *more]}

        window.get_by_role("button", name="Score").click()
        expect(window.locator("#view .legend button[aria-pressed=true]")).to_have_count(1)
        window.get_by_role("button", name="Groups 2").click()
        expect(window.locator("#view .legend")).to_contain_text("Stage 2 merged the photo into")
        name, data = download(window, "picture")
        assert name == "my_photo_groups.png"
        assert Image.open(io.BytesIO(data)).size == (1024, 768)


def test_a_broken_file_is_told_in_one_sentence_and_others_are_shown(chromium, served):
    with visitor(chromium, served, width=400) as window:
        send(window, ("broken.png", b"\x89PNG\r\n\x1a\n"))
        messages = window.locator("#view .messages p")
        expect(messages).to_have_text("broken.png: truncated header of an image of 8 bytes")
        good = [(f"{i}.png", encode(photo(40, 60, i), "PNG")) for i in range(2)]
        send(window, good[0], ("text.png", b"text"), good[1])
        shown(window, 2)
        expect(messages).to_have_count(1)
        expect(messages).to_contain_text("text.png: unknown image format")
        window.locator("#view .thumbs button").nth(1).click()
        expect(window.locator("#view canvas")).to_have_attribute("aria-label", "1.png")
        # A phone shows all of the page without scrolling sideways.
        assert window.evaluate("document.documentElement.scrollWidth") <= 400
        send(window, *[(f"{i}.png", b"") for i in range(9)])
        expect(window.locator("#drop .problem")).to_have_text(
            "9 photos found, expected at most 8 at once."
        )


def test_40_megapixels(chromium, served):
    side = 6320
    with visitor(chromium, served) as window:
        send(window, ("large.jpg", solid_grey_jpeg(side)))
        shown(window, 1)
        assert window.evaluate("document.querySelector('#view canvas').width") <= 1280
        _, data = download(window, "mask")
        assert Image.open(io.BytesIO(data)).size == (side, side)


def test_two_people_at_once_get_their_own(chromium, served):
    images = [photo(60, 80, 7), photo(80, 60, 8)]
    labels = [("cat", "mat", "hat"), ("sun", "moon", "star")]
    with visitor(chromium, served) as first, visitor(chromium, served) as second:
        windows = (first, second)
        for window, names in zip(windows, labels, strict=True):
            for _ in LABELS:
                window.locator("#labels .token-remove").first.click()
            add_label(window, ", ".join(names))
        for window, names in zip(windows, labels, strict=True):
            expect(window.locator("#labels .token")).to_have_text(list(names))
        for window, image in zip(windows, images, strict=True):
            send(window, ("mine.png", encode(image, "PNG")))
        for window, image, names in zip(windows, images, labels, strict=True):
            shown(window, 1)
            found = np.asarray(Image.open(io.BytesIO(download(window, "mask")[1])))
            np.testing.assert_array_equal(found, served[2].segmenter(image, names).mask)


def test_examples_camera_and_clipboard(chromium, served):
    with visitor(chromium, served) as window:
        window.locator("[data-example='0']").click()
        shown(window, 1)
        caption = served[2].examples[0].name
        picture = window.locator("#view canvas")
        expect(picture).to_have_attribute("aria-label", caption)

        window.get_by_role("button", name="Camera").click()
        expect(window.locator("#drop video")).to_be_visible()
        window.get_by_role("button", name="Take photo").click()
        expect(picture).to_have_attribute("aria-label", "camera.jpg")

        window.evaluate(
            """bytes => {
              const data = new DataTransfer(), type = "image/png";
              data.items.add(new File([new Uint8Array(bytes)], "pasted.png", {type}));
              window.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data}));
            }""",
            list(encode(photo(40, 60), "PNG")),
        )
        expect(picture).to_have_attribute("aria-label", "pasted.png")
        shown(window, 1)
