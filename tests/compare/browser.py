"""Opens pages in a headless browser, and tells what is on them."""

import json
import os
import re
import shutil
import subprocess

import pytest

from tests.waiting import PATIENCE

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FIRST = "<script>window.found = []; window.onerror = text => {found.push(text)}</script>"
# What is wider than the page, what of a chart lies outside of it, and a click on a column.
_LAST = """<pre id="measured"></pre><script>
for (const svg of document.querySelectorAll("figure > svg"))
  for (const part of svg.querySelectorAll("text, use")) {
    const box = part.getBoundingClientRect(), view = svg.getBoundingClientRect();
    if (box.left < view.left - 1 || box.top < view.top - 1 || box.right > view.right + 1 ||
        box.bottom > view.bottom + 1)
      found.push("outside of its chart: " + (part.textContent || part.outerHTML));
  }
const columns = [...document.querySelectorAll("table:last-of-type")].pop();
const order = [0, 1].map(() => {
  columns.rows[0].cells[columns.rows[0].cells.length - 2].click();
  return [...columns.rows].slice(1).map(row => row.cells[row.cells.length - 2].innerText);
});
document.getElementById("measured").textContent = JSON.stringify({
  errors: found,
  width: document.documentElement.scrollWidth, room: window.innerWidth,
  background: getComputedStyle(document.body).backgroundColor,
  text: document.getElementById("verdict").innerText,
  rows: [...document.querySelectorAll("table")].map(table => table.rows.length),
  figures: document.querySelectorAll("figure > svg").length, order: order,
});
</script>"""


def find():
    """The browser's command; without one the test is skipped, which pytest reports."""
    browser = next(filter(None, map(shutil.which, _NAMES)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(_NAMES)} found")
    return browser


def measure(page, folder, width, dark=False):
    """What a page of HTML comes to in a window of that width, in pixels."""
    copy = folder / f"measured-{width}-{dark}.html"
    copy.write_text(page.replace("<head>", f"<head>{_FIRST}").replace("</body>", f"{_LAST}</body>"))
    command = [
        find(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom", copy.as_uri(),
    ]  # fmt: skip
    environment = dict(os.environ, HOME=str(folder))
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, env=environment
    )
    found = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
