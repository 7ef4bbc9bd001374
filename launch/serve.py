r"""Serves a web page on this machine: drop a photo, type labels, see masks, scores and groups.

python -m launch.serve --checkpoint=runs/demo/run --window=64
python -m launch.serve --checkpoint=gcc_yfcc.pth --labels="dog, grass, frisbee" --port=8080

It takes the checkpoints that launch.segment takes, with a segment head too, and needs the extra
`serve`. Only this machine reaches the page unless --host says otherwise; it needs no network, and
nothing of a photo is kept.

Exit codes: 0 stopped; 2 something is wrong with flags, files or the port.
"""

import argparse
import contextlib
import importlib.util
import signal
import sys
from collections.abc import Sequence
from typing import Any

from groupvit_jax.eval.protocol import PROTOCOLS, THRESHOLDS
from groupvit_jax.runs import exit_codes
from groupvit_jax.segmenter import Segmenter
from launch import common
from launch.segment import prompts_of, split_texts

_KNOBS = ("window", "stride", "num_kept", "pamr_iterations", "windows_at_once")
_LIMITS = ("megabytes", "megapixels", "side", "seconds")


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line, `argv[0]` being the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        help="a run's folder or a step of it, an export, a Hugging Face directory or a .pth",
    )
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for the whole network")
    add("--port", type=int, help="default: the first free one from 7860 on")
    add("--labels", help="to start with: commas between, or @FILE with one on each line")
    add("--vocabulary", help="labels that segments are named by, likewise")
    add("--background_threshold", type=float, help="where the slider starts, 0 to 1")
    add("--protocol", default="groupvit", choices=list(PROTOCOLS), help="how images are segmented")
    add("--prompts", help="texts with {} for the label, semicolons between, or @FILE")
    add("--window", type=int, help="side of the sliding windows; default: twice the training's")
    add("--stride", type=int, help="pixels between windows; default: half a window")
    add("--num_kept", type=int, help="labels that each window may show (default: 5)")
    add("--pamr_iterations", type=int, help="refine regions along edges; usual: 10 (default: 0)")
    add("--windows_at_once", type=int, help="less where memory is short")
    add("--megabytes", type=float, help="of an upload (default: 64)")
    add("--megapixels", type=float, help="of a photo (default: 50)")
    add("--side", type=int, help="longer side to which photos are scaled down (default: 1280)")
    add("--seconds", type=float, help="until an answer, waiting included (default: 60)")
    return parser.parse_args(argv[1:])


def main(flags: argparse.Namespace) -> int:
    """Serve until stopped; return the exit code."""
    missing = [name for name in ("gradio", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        common.fail(
            exit_codes.BAD_INPUT,
            f"{missing[0]} is not installed: pip install 'groupvit_jax[serve]', or from a clone "
            "pip install -e '.[serve]'",
        )
    with common.bad_input_ends(OSError):
        return _serve(flags)


def _serve(flags: argparse.Namespace) -> int:
    from groupvit_jax.serve import server
    from groupvit_jax.serve.page import Page
    from groupvit_jax.serve.photos import Limits

    given = {name: getattr(flags, name) for name in _LIMITS if getattr(flags, name) is not None}
    limits = Limits(**given)
    texts = {
        name: split_texts(f"--{name}", getattr(flags, name), ",")
        for name in ("labels", "vocabulary")
        if getattr(flags, name) is not None
    }
    with server.open_socket(flags.host, flags.port) as listener, server.private_cache():
        options: dict[str, Any] = {name: getattr(flags, name) for name in _KNOBS}
        if flags.prompts is not None:
            # Visitors name labels, so that prompts may be of labels that come later.
            options |= {"prompts": prompts_of(flags.prompts), "other_prompts": True}
        segmenter = Segmenter.from_pretrained(flags.checkpoint, protocol=flags.protocol, **options)
        threshold = flags.background_threshold
        if threshold is None:
            threshold = THRESHOLDS[flags.protocol][""]
        page = Page(segmenter, threshold=threshold, limits=limits, **texts)
        print("compiling", flush=True)
        page.warm_up()
        app = server.make_app(page)
        print(f"open {server.address(listener)} (Ctrl-C stops)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C, which the server handles and repeats
            server.make_server(app).run(sockets=[listener])
        page.close()
    return 0


if __name__ == "__main__":
    # As Ctrl-C: the server repeats the signal at its end, which would skip what cleans up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    common.use_all_cores()
    common.keep_compiled_programs()
    sys.exit(main(parse_flags(sys.argv)))
