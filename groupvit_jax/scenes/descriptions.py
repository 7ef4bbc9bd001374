"""Captions a scene as people do: objects, their looks and positions, never completely.

Telling two scenes apart by their captions requires the attributes of things, not only their kinds.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from groupvit_jax.scenes.drawing import Scene, Stuff, Thing

_COUNTS = {2: ("two", "a pair of", "a couple of"), 3: ("three",)}
_VIEWS = ("a picture of ", "a photo of ", "a drawing of ", "there is ", "we see ")
_SEEN = 0.15  # less visible things are not mentioned


@dataclasses.dataclass(frozen=True)
class _Mention:
    """Things that are described together, nearest first."""

    things: tuple[Thing, ...]

    @property
    def centre(self) -> tuple[float, float]:
        x, y = np.mean([thing.centre for thing in self.things], axis=0)
        return float(x), float(y)


def caption(scene: Scene, visible: Sequence[float], rng: np.random.Generator) -> str:
    """Return one sentence about `scene`; `visible` is the visible share of each thing."""
    mentions = _group([t for t, seen in zip(scene.things, visible, strict=True) if seen > _SEEN])
    where = _background(scene, rng)
    if not mentions:
        return where.removeprefix("on ").removeprefix("in front of ")
    subject = _things(mentions, rng)
    if rng.random() < 0.2:
        return f"{where}, {subject}"
    view = str(rng.choice(_VIEWS)) if rng.random() < 0.4 else ""
    if len(mentions[0].things) > 1:
        view = view.replace("there is", "there are")
    return f"{view}{subject} {where}"


def _group(things: Sequence[Thing]) -> list[_Mention]:
    groups: dict[tuple, list[Thing]] = {}
    for thing in reversed(things):  # things in front are mentioned first
        groups.setdefault((thing.kind, thing.colour, thing.material), []).append(thing)
    return [_Mention(tuple(group)) for group in groups.values()]


def plural(kind: str) -> str:
    """Return the plural of a kind of thing."""
    if kind == "fish":
        return kind
    return kind + ("es" if kind.endswith(("s", "x")) else "s")


def _noun_phrase(mention: _Mention, rng: np.random.Generator) -> str:
    """Return count, size, material and colour, each omitted at random, and the kind."""
    first, count = mention.things[0], len(mention.things)
    radius = np.mean([thing.radius for thing in mention.things])
    words = []
    if radius > 0.36 and rng.random() < 0.7:
        words.append(str(rng.choice(("large", "big"))))
    if radius < 0.27 and rng.random() < 0.7:
        words.append(str(rng.choice(("small", "little"))))
    if first.material != "plain" and rng.random() < 0.6:
        words.append(first.material)
    if rng.random() < 0.6:
        words.append(first.colour)
    words.append(first.kind if count == 1 else plural(first.kind))
    if count > 1:
        return " ".join([str(rng.choice(_COUNTS[count])), *words])
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _relation(a: _Mention, b: _Mention, rng: np.random.Generator) -> str:
    """Return the spatial relation of `a` to `b`, which is behind it."""
    dx, dy = a.centre[0] - b.centre[0], a.centre[1] - b.centre[1]
    reach = a.things[0].radius + b.things[0].radius
    options = ["and", "and", "next to", "with"]
    if np.hypot(dx, dy) < 0.9 * reach:
        options += ["in front of"] * 3
    if abs(dx) > 1.5 * abs(dy):
        options += (
            ["left of", "to the left of"] if dx < 0 else ["right of", "to the right of"]
        ) * 2
    if abs(dy) > 1.5 * abs(dx):
        options += (["above", "over"] if dy < 0 else ["below", "under"]) * 2
    return str(rng.choice(options))


def _place(mention: _Mention, rng: np.random.Generator) -> str:
    """Return the position of a single thing in the picture, if it is distinct."""
    x, y = mention.centre
    side = "left" if x < 0.4 else "right" if x > 0.6 else ""
    height = "top" if y < 0.4 else "bottom" if y > 0.6 else ""
    if not side and not height:
        return str(rng.choice(("in the middle", "in the center")))
    place = " ".join(word for word in (height, side) if word)
    return f"on the {place}" if side and not height else f"at the {place}"


def _things(mentions: Sequence[_Mention], rng: np.random.Generator) -> str:
    text = _noun_phrase(mentions[0], rng)
    if len(mentions) == 1:
        return f"{text} {_place(mentions[0], rng)}" if rng.random() < 0.4 else text
    for before, mention in itertools.pairwise(mentions):
        text += f" {_relation(before, mention, rng)} {_noun_phrase(mention, rng)}"
    return text


def _stuff(stuff: Stuff, rng: np.random.Generator) -> str:
    look = f"{stuff.look} " if rng.random() < 0.5 else ""
    if stuff.kind == "sky":
        return f"{'a' if look else 'the'} {look}sky"
    if stuff.kind == "brick":
        return f"{'a' if look else 'the'} {look}brick wall"
    return f"{'' if look and rng.random() < 0.5 else 'the '}{look}{stuff.kind}"


_ONE: dict[str, tuple[str, ...]] = {
    "sky": ("in {0}", "against {0}", "in front of {0}"),
    "brick": ("in front of {0}", "against {0}", "on {0}"),
    "water": ("in {0}", "on {0}", "in the middle of {0}"),
}
_OTHER_ONE = ("on {0}", "lying on {0}", "surrounded by {0}")
_TWO: dict[str, tuple[str, ...]] = {
    "sky": ("on {1} under {0}", "between {1} and {0}", "with {0} above {1}"),
    "brick": ("on {1} in front of {0}", "by {0} and {1}", "with {0} behind {1}"),
}
_OTHER_TWO = ("where {0} meets {1}", "between {0} and {1}", "on {0} and {1}", "on {1} near {0}")


def _background(scene: Scene, rng: np.random.Generator) -> str:
    """Names the stuff; of two kinds, one is sometimes omitted."""
    stuff = list(scene.stuff)
    if len(stuff) == 2 and rng.random() < 0.2:
        stuff.pop(int(rng.integers(2)))
    options = _ONE.get(stuff[0].kind, _OTHER_ONE)
    if len(stuff) == 2:
        options = _TWO.get(stuff[0].kind, _OTHER_TWO)
    names = [_stuff(each, rng) for each in stuff]
    return str(rng.choice(options)).format(*names)
