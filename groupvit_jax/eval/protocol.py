"""Segmentation protocols by name: the published one, and the field's common one (TCL)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from groupvit_jax.eval.encoding import IMAGENET_PROMPTS, SEGMENTATION_PROMPTS, Prompts

BACKGROUND_RULES = ("window", "constant")
PARTIAL_PATCHES = ("drop", "pad")
PAMR_PLACES = ("window", "image")
# Values of the fields of `Protocol` that name a rule.
CHOICES = {
    "background_rule": BACKGROUND_RULES,
    "partial_patches": PARTIAL_PATCHES,
    "pamr_place": PAMR_PLACES,
}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Settings of a segmentation protocol; the defaults are published (arXiv 2202.11094).

    Attributes:
      resize: bounds of the longer and shorter side, between which images are scaled keeping their
        aspect ratio; () keeps the size.
      window: side of the sliding windows, in pixels.
      stride: distance between windows, in pixels.
      num_kept: number of classes kept per window, by similarity to the window's embedding.
      background_threshold: None for classes without background.
      background_rule: "window": in each window, background scores 1 where no class reaches the
        threshold (or the window's best score if that is lower), and 0 elsewhere; "constant":
        background scores the threshold everywhere, after averaging the windows.
      prompts: templates with one `{}` for the class name, whose embeddings are averaged.
      class_prompts: templates of single classes in place of these, by name; a text without `{}` is
        taken as it is.
      partial_patches: rows and columns of pixels at a window's end that fill no patch: "drop" them,
        as the published patch embedding does, or "pad" them to a patch.
      pamr_iterations: number of refinement steps (`eval.pamr`).
      pamr_dilations: distances to the neighbours in refinement.
      pamr_place: what is refined: "window", each window's scores, one per patch, before windows are
        averaged and background is added (TCL); or "image", all scores of the joined windows, one
        per pixel.
    """

    resize: tuple[int, ...] = (2048, 448)
    window: int = 448
    stride: int = 224
    num_kept: int = 5
    background_threshold: float | None = None
    background_rule: str = "window"
    prompts: tuple[str, ...] = SEGMENTATION_PROMPTS
    partial_patches: str = "drop"
    pamr_iterations: int = 0
    pamr_dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24)
    pamr_place: str = "image"
    class_prompts: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        """Raise a ValueError that names the field of an invalid value."""
        for name, least in (("window", 1), ("stride", 1), ("num_kept", 1), ("pamr_iterations", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}")
        if len(self.resize) not in (0, 2):
            raise ValueError(f"resize={self.resize}: expected two sides, or () for none")
        if self.stride > self.window:
            raise ValueError(
                f"stride={self.stride}: expected at most the window of {self.window}, or pixels "
                "between the windows would belong to none"
            )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {choices}")
        check_prompts(self.prompts)

    @property
    def texts(self) -> Prompts:
        """Return the templates, by class if a class has some of its own."""
        return (
            {"": self.prompts, **dict(self.class_prompts)} if self.class_prompts else self.prompts
        )

    @property
    def has_background(self) -> bool:
        """Whether class 0 is the background."""
        return self.background_threshold is not None


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise ValueError unless there are prompts and each has one `{}` and no other brace."""
    if isinstance(prompts, str):
        raise ValueError(f"prompts: the text {prompts!r} found, expected a list of texts")
    if not prompts:
        raise ValueError("prompts: an empty list found, expected at least one text with {}")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise ValueError(f"prompts: {prompt!r} found, expected texts")
        if prompt.count("{}") != 1 or set("{}") & set(prompt.replace("{}", "")):
            raise ValueError(f"prompts: {prompt!r} found, expected one {{}} where the name goes")


def checked_prompts(given: Prompts, usual: Sequence[str]) -> Prompts:
    """Return templates, or templates by class with "" for all others.

    Args:
      given: either of the two.
      usual: templates of the others where none are given.

    Raises:
      ValueError: texts of all classes have no `{}`, or something else is wrong with a text.
    """
    if not isinstance(given, Mapping):
        check_prompts(given)
        return tuple(given)
    for name, texts in given.items():
        if isinstance(texts, str) or not all(isinstance(t, str) and t for t in texts) or not texts:
            raise ValueError(f"prompts of {name!r}: {texts!r} found, expected a list of texts")
        if name and any(set("{}") & set(t.replace("{}", "")) for t in texts):
            raise ValueError(
                f"prompts of {name!r}: {list(texts)} found, expected no braces but {{}}"
            )
    # Sorted: the order of a file's classes makes no other protocol.
    by_class = {"": tuple(usual), **{name: tuple(given[name]) for name in sorted(given)}}
    check_prompts(by_class[""])
    return by_class


PROTOCOLS = {
    "groupvit": Protocol(),
    # "TCL" (Cha et al., CVPR 2023): the same resize, windows and stride for all methods and sets.
    "tcl": Protocol(
        background_rule="constant",
        prompts=(*IMAGENET_PROMPTS, "a photo of many {}.", "a photo of {}s."),
        partial_patches="pad",
        pamr_iterations=10,
        pamr_place="window",
    ),
}
# Background thresholds of each protocol by set, and for all other sets with background under "".
# GroupViT published values for three sets; TCL has one for all.
THRESHOLDS = {
    "groupvit": {"voc": 0.95, "context": 0.35, "coco_object": 0.95, "": 0.95},
    "tcl": {"": 0.4},
}
# Where a protocol's class names differ from those in `data.eval_sets`, by protocol and set.
_CONTEXT = {"aeroplane": "airplane", "pottedplant": "plant", "tvmonitor": "monitor"}
_VOC = {"table": "diningtable", "plant": "pottedplant", "monitor": "tvmonitor"}
CLASS_NAMES: dict[str, dict[str, dict[str, str]]] = {
    "groupvit": {"context": _CONTEXT, "context59": _CONTEXT},
    "tcl": {"voc": _VOC, "voc20": _VOC, "ade20k": {"television": "television receiver"}},
}


def class_names(protocol: str, benchmark: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the class names that a protocol compares a set's images with.

    Args:
      protocol: a key of `PROTOCOLS`.
      benchmark: name of the set.
      names: the set's names, as `data.eval_sets` has them.
    """
    other = CLASS_NAMES[protocol].get(benchmark, {})
    return tuple(other.get(name, name) for name in names)


_PUBLISHED_IMAGE_SIZE = 224


def make_protocol(
    name: str,
    benchmark: str = "",
    *,
    has_background: bool = False,
    image_size: int = _PUBLISHED_IMAGE_SIZE,
    **knobs: Any,
) -> Protocol:
    """Build the protocol for a set of images.

    Args:
      name: a key of `PROTOCOLS`.
      benchmark: name of the set, for its threshold.
      has_background: whether the set has a background class.
      image_size: training size of the model; windows, defined for 224 pixels, scale with it.
      **knobs: overrides of `Protocol` fields; None keeps the protocol's value. Stride and resize
        scale with the window; `prompts` may be given by class name, with "" for all others.

    Raises:
      ValueError: the protocol is unknown or a value is invalid.
      TypeError: an override is not a field of `Protocol`.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol: {name!r} found, expected one of {list(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    given = {key: value for key, value in knobs.items() if value is not None}
    if has_background:
        thresholds = THRESHOLDS[name]
        given.setdefault("background_threshold", thresholds.get(benchmark, thresholds[""]))
    elif "background_threshold" in given:
        raise ValueError(f"background_threshold: {benchmark or 'the set'} has no background")
    if "prompts" in given:
        texts = checked_prompts(given["prompts"], protocol.prompts)
        by_class = dict(texts) if isinstance(texts, Mapping) else {"": texts}
        given["prompts"] = by_class.pop("")
        given["class_prompts"] = tuple(by_class.items())
    for key in ("resize", "pamr_dilations"):
        if key in given:
            given[key] = tuple(given[key])
    window = given.setdefault("window", protocol.window * image_size // _PUBLISHED_IMAGE_SIZE)
    scale = window / protocol.window
    given.setdefault("stride", max(1, round(protocol.stride * scale)))
    given.setdefault("resize", tuple(round(side * scale) for side in protocol.resize))
    return dataclasses.replace(protocol, **given)
