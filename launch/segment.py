r"""Segments images into any labels, and leaves pictures to look at and masks to work with.

A model with a segment head has labels of its own, and --labels is left out.

python -m launch.segment --checkpoint=runs/first --labels="dog, grass" --output=segmented *.jpg
python -m launch.segment --checkpoint=gcc_yfcc.pth --labels=@names.txt --background \
    --output=segmented photos 'more/**/*.png'

Writes for each image OUTPUT/NAME_labels.png (the labels at their regions), NAME_groups.png (the
groups of each stage), NAME_side.png (the image beside its segmentation) and NAME_mask.png (for
every pixel the index of its label), with --save=scores,groups also NAME_scores.npz and
NAME_groups.npz, and OUTPUT/labels.json, which names the indices and the files.

Exit codes: 0 done; 1 some images could not be read; 2 something is wrong with flags or files.
"""

import argparse
import collections
import glob
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from groupvit_jax.data.images.decode import MAX_PIXELS
from groupvit_jax.data.images.photo import read_photo
from groupvit_jax.data.sources.labelled import IMAGE_SUFFIXES
from groupvit_jax.data.text.prompt_files import read_lines_of, read_prompts
from groupvit_jax.eval.protocol import PROTOCOLS, check_prompts
from groupvit_jax.eval.saving import check_kinds, groups_npz, scores_npz
from groupvit_jax.report import visualize
from groupvit_jax.runs import exit_codes
from groupvit_jax.segmenter import SegmentationResult, Segmenter, check_labels
from launch import common

_RESULTS = ("_labels.png", "_groups.png", "_side.png", "_mask.png")
_FEW = 5  # files that a message names
_KNOBS = ("window", "stride", "num_kept", "pamr_iterations", "windows_at_once")


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line, `argv[0]` being the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="a file, a folder or a quoted glob")
    add(
        "--checkpoint",
        required=True,
        help="a run's folder or a step of it, an export, a Hugging Face directory or a .pth",
    )
    add("--labels", help="with commas between, or @FILE with one on each line")
    add("--output", required=True, help="folder to write into")
    add("--background", action="store_true", help="pixels may have none of the labels")
    add(
        "--background_threshold",
        type=float,
        help="what a label has to score where there is a background, 0 to 1; implies --background",
    )
    add(
        "--prompts",
        help='texts with {} for the label, semicolons between (default: "a photo of a {}."), '
        "or @FILE with one on each line",
    )
    add("--protocol", default="groupvit", choices=list(PROTOCOLS), help="how images are segmented")
    add("--window", type=int, help="side of the sliding windows; default: twice the training's")
    add("--stride", type=int, help="pixels between windows; default: half a window")
    add("--num_kept", type=int, help="labels that each window may show (default: 5)")
    add("--pamr_iterations", type=int, help="refine regions along edges; usual: 10 (default: 0)")
    add("--save", help="also write NAME_scores.npz, NAME_groups.npz: scores,groups (masks always)")
    add("--windows_at_once", type=int, help="less where memory is short")
    add("--megapixels", type=float, default=MAX_PIXELS / 1e6, help="of the largest (default: 50)")
    return parser.parse_args(argv[1:])


def main(flags: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    common.name_steps()
    with common.bad_input_ends():
        return _run(flags)


def _run(flags: argparse.Namespace) -> int:
    output = Path(flags.output)
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"--output={output}: a file found, expected a folder")
    save = check_kinds(flags.save.split(",") if flags.save else ())
    has_background = flags.background or flags.background_threshold is not None
    # Labels and files are checked before the model is loaded.
    labels = None
    if flags.labels is not None:
        labels = check_labels(split_texts("--labels", flags.labels, ","), has_background)
    names = unique_names(find_images(flags.images, output))
    segmenter = Segmenter.from_pretrained(flags.checkpoint, **_options(flags, has_background))
    mask_labels = segmenter.mask_labels(labels)
    for folder in filter(Path.is_dir, map(Path, flags.images)):
        _name_others(folder)
    output.mkdir(parents=True, exist_ok=True)
    entries: dict[str, dict[str, Any]] = {}
    try:
        max_pixels = int(flags.megapixels * 1e6)
        skipped = _segment_all(segmenter, labels, names, output, entries, save, max_pixels)
    finally:  # masks without their labels are of no use
        content = {"labels": mask_labels, "images": entries}
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (output / "labels.json").write_text(text + "\n", encoding="utf-8")
    print(f"segmented {len(entries)} of {len(names)} images into {output}")
    if skipped:
        print(f"{skipped} of {len(names)} images could not be read", file=sys.stderr)
    return exit_codes.FAILED if skipped else 0


def _options(flags: argparse.Namespace, has_background: bool) -> dict[str, Any]:
    threshold = flags.background_threshold
    options = {name: getattr(flags, name) for name in _KNOBS}
    options["background"] = has_background if threshold is None else threshold
    options["protocol"] = flags.protocol
    if flags.prompts is not None:
        options["prompts"] = prompts_of(flags.prompts)
    return options


def prompts_of(text: str) -> Any:
    """Return templates, or those of a file, also by label."""
    if text.startswith("@"):
        found = read_prompts(Path(text[1:]).expanduser())
    else:
        found = split_texts("--prompts", text, ";")
    if not isinstance(found, Mapping):
        check_prompts(found)
    return found


def split_texts(flag: str, text: str, separator: str) -> list[str]:
    """Return what stands between separators, or on the lines of the file behind an @."""
    if not text.startswith("@"):
        return [part.strip() for part in text.split(separator)]
    path = Path(text[1:]).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{flag}={text}: no such file")
    return read_lines_of(path)


def find_images(patterns: Sequence[str], output: Path) -> list[Path]:
    """Return the files that patterns stand for, each once; results of earlier runs are none.

    Args:
      patterns: files, folders (with all images below) and globs.
      output: where results lie.

    Raises:
      FileNotFoundError: there is no such file, or no image at all.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        for path in _expand(pattern):
            is_result = path.name.endswith(_RESULTS) and path.parent.resolve() == output.resolve()
            if not is_result:
                found.setdefault(path.resolve(), path)
    if not found:
        raise FileNotFoundError(
            f"{', '.join(patterns)}: no image found, expected files that end in "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    return list(found.values())


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        candidates = path.rglob("*")
    elif glob.has_magic(pattern):
        candidates = (Path(match) for match in glob.iglob(str(path), recursive=True))
    else:
        raise FileNotFoundError(f"{pattern}: no such file or folder")
    return sorted(p for p in candidates if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def _name_others(folder: Path) -> None:
    """Name the files of a folder that aren't segmented."""
    files = (f for f in sorted(folder.rglob("*")) if f.is_file() and not f.name.startswith("."))
    others = [f.name for f in files if f.suffix.lower() not in IMAGE_SUFFIXES]
    if others:
        more = ", ..." if len(others) > _FEW else ""
        names = ", ".join(others[:_FEW])
        print(f"{folder}: {len(others)} files left out, no images: {names}{more}", file=sys.stderr)


def unique_names(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the files by what their results are called: NAME, then NAME_2, NAME_3, ..."""
    names: dict[str, Path] = {}
    taken: set[str] = set()
    for path in paths:
        name, number = path.stem, 1
        while name.casefold() in taken:  # as file systems do that don't tell A from a
            number += 1
            name = f"{path.stem}_{number}"
        taken.add(name.casefold())
        names[name] = path
    return names


def _segment_all(
    segmenter: Segmenter,
    labels: Sequence[str] | None,
    names: Mapping[str, Path],
    output: Path,
    entries: dict[str, dict[str, Any]],
    save: Sequence[str],
    max_pixels: int,
) -> int:
    """Write all results, put descriptions into `entries`; return how many were skipped."""
    waiting: collections.deque[str] = collections.deque()
    skipped: list[str] = []
    console = Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("images; compiling at the first", total=len(names))

        def photos() -> Iterator[np.ndarray]:
            for name, path in names.items():
                try:
                    photo = read_photo(path, max_pixels=max_pixels)
                except (ValueError, OSError) as error:
                    skipped.append(name)
                    progress.advance(task)
                    progress.console.print(f"skipped {error}", markup=False, soft_wrap=True)
                    continue
                waiting.append(name)
                yield photo

        for result in segmenter.batch(photos(), labels):
            name = waiting.popleft()
            _write(output, name, result, save)
            shares = {label: round(share, 5) for label, share in result.shares().items()}
            entries[name] = {"file": str(names[name]), "shares": shares}
            progress.update(task, advance=1, description="images")
    return len(skipped)


def _write(output: Path, name: str, result: SegmentationResult, save: Sequence[str]) -> None:
    contents = (
        visualize.png(result.overlay()),
        visualize.png(result.overlay_groups()),
        visualize.png(result.side_by_side()),
        visualize.mask_png(result.mask, result.colours),
    )
    for ending, content in zip(_RESULTS, contents, strict=True):
        (output / f"{name}{ending}").write_bytes(content)
    if "scores" in save:
        (output / f"{name}_scores.npz").write_bytes(scores_npz(result))
    if "groups" in save:
        (output / f"{name}_groups.npz").write_bytes(groups_npz(result))


if __name__ == "__main__":
    common.use_all_cores()
    common.keep_compiled_programs()
    sys.exit(main(parse_flags(sys.argv)))
