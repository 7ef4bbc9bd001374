"""Predictions as files: masks, scores and groups of each image, and a page of groups by token."""

import heapq
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from groupvit_jax.eval.segment_images import SegmentedImage
from groupvit_jax.report import visualize
from groupvit_jax.typing import UInt8

KINDS = ("masks", "scores", "groups")
_PICTURES, _SIDE = 6, 128  # of each group token on the page


def check_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds of files; a ValueError names an unknown one."""
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"--save: {unknown[0]!r} found, expected some of {', '.join(KINDS)}")
    return tuple(kinds)


def label_colours(count: int, has_background: bool) -> UInt8[np.ndarray, "N 3"]:
    """Return a colour for each label; the background, label 0, is black."""
    if not has_background:
        return visualize.palette(count)
    return np.concatenate([np.zeros((1, 3), np.uint8), visualize.palette(max(count - 1, 1))])


def scores_npz(found: Any) -> bytes:
    """Encode `scores`, Float16 [H, W, K], and `classes`, Int32 [K]; other classes score 0.

    Args:
      found: a `SegmentedImage` or a `SegmentationResult`.
    """
    return _npz(scores=found.scores.astype(np.float16), classes=found.classes.astype(np.int32))


def groups_npz(found: Any) -> bytes:
    """Encode for each stage `groups_S`, UInt8 [H, W], and `maps_S`, Float16 [h, w, G].

    `groups_S` is the group of every pixel, `maps_S` the soft assignment of every patch of the whole
    image as one square window.
    """
    groups = {f"groups_{i}": g.astype(np.uint8) for i, g in enumerate(found.groups, 1)}
    maps = {f"maps_{i}": m.astype(np.float16) for i, m in enumerate(found.group_maps, 1)}
    return _npz(**groups, **maps)


def _npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its stub has a flag between
    return file.getvalue()


class PredictionFiles:
    """Writes FOLDER/masks/NAME.png, scores/NAME.npz and groups/NAME.npz, and FOLDER/groups.html."""

    def __init__(
        self, folder: Path, kinds: Sequence[str], labels: Sequence[str], has_background: bool
    ) -> None:
        """Create the folder.

        Args:
          folder: to write into.
          kinds: some of `KINDS`.
          labels: names of the labels.
          has_background: whether label 0 is the background.
        """
        self._folder, self._kinds = folder, tuple(kinds)
        self._colours = label_colours(len(labels), has_background)
        self._tokens = _Tokens()
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def needs_groups(self) -> bool:
        """Whether results must have groups."""
        return "groups" in self._kinds

    def __call__(self, name: str, image: UInt8[np.ndarray, "H W 3"], found: SegmentedImage) -> None:
        """Write the files of an image; `name` may have folders."""
        for kind in self._kinds:
            if kind == "masks":
                ending, content = ".png", visualize.mask_png(found.mask, self._colours)
            else:
                ending = ".npz"
                content = (scores_npz if kind == "scores" else groups_npz)(found)
            path = self._folder / kind / f"{name}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if self.needs_groups:
            self._tokens.add(name, image, found.groups)

    def finish(self) -> None:
        """Write the page of group tokens, if there are groups."""
        if self.needs_groups:
            self._tokens.write(self._folder / "groups.html")


class _Tokens:
    """The images in which each group token covers most."""

    def __init__(self) -> None:
        # By stage and token: share of the image, a number that orders equal ones, name, picture.
        self._best: dict[tuple[int, int], list[tuple[float, int, str, np.ndarray]]] = {}
        self._count = 0

    def add(self, name: str, image: np.ndarray, groups: Sequence[np.ndarray]) -> None:
        """Keep the image for the tokens that cover more of it than of all kept ones."""
        scale = min(1, _SIDE / max(image.shape[:2]))
        size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
        small: np.ndarray | None = None
        for stage, of_pixel in enumerate(groups, 1):
            counts = np.bincount(of_pixel.ravel())
            for token in np.flatnonzero(counts).tolist():
                share = counts[token] / of_pixel.size
                kept = self._best.setdefault((stage, token), [])
                # A heap: its first item has the smallest share.
                if len(kept) == _PICTURES and share <= kept[0][0]:
                    continue
                if small is None:
                    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
                inside = (of_pixel == token).astype(np.int32)
                inside = cv2.resize(inside, size, interpolation=cv2.INTER_NEAREST)
                # The token in colour, all else grey and dark.
                colours = np.zeros((2, 3), np.uint8) + np.uint8(255)
                picture = visualize.overlay(small, inside, colours, strength=0.0, background=0)
                self._count += 1
                item = (float(share), self._count, name, picture)
                (heapq.heappush if len(kept) < _PICTURES else heapq.heappushpop)(kept, item)

    def write(self, path: Path) -> None:
        """Write a page with a row of pictures for each token."""
        from groupvit_jax.report import document  # jinja2, where a page is written

        rows: dict[int, list[tuple[list[str], str]]] = {}
        for (stage, token), kept in sorted(self._best.items()):
            best = sorted(kept, reverse=True)
            pictures = [document.data_url(picture, "jpeg") for *_, picture in best]
            blank = document.data_url(np.full((1, 1, 3), 255, np.uint8), "jpeg")
            names = ", ".join(f"{name} ({100 * share:.0f} %)" for share, _, name, _ in best)
            pictures += [blank] * (_PICTURES - len(pictures))
            rows.setdefault(stage, []).append((pictures, f"token {token}: {names}"))
        document.write(path, "groups", title="What each group token looks for", stages=rows)
