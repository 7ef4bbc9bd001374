import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

from groupvit_jax.data.sources.pairs import make_source
from groupvit_jax.scenes import dataset
from groupvit_jax.scenes.descriptions import caption, plural
from groupvit_jax.scenes.drawing import (
    CLASS_NAMES,
    COLOURS,
    MATERIALS,
    STUFF,
    THINGS,
    Scene,
    Stuff,
    Thing,
    draw,
)
from tests.waiting import PATIENCE

CONFIG = dataset.SceneConfig(name="test", size=32, num_train=24, num_eval=4)


def rng(seed=0):
    return np.random.default_rng(seed)


def thing(kind="ball", colour="red", centre=(0.5, 0.5), radius=0.3, material="plain"):
    return Thing(kind, colour, material, centre, radius, angle=0.0)


def scene(*things):
    stuff = (Stuff("sky", "clear"), Stuff("grass", "green"))
    return Scene(stuff=stuff, border=(0.5, 0.5), border_angle=0.0, things=things)


def examples(split, count):
    return [dataset.make_example(CONFIG, split, index) for index in range(count)]


def mentioned_classes(text):
    singular = {plural(kind): kind for kind in THINGS}
    words = [singular.get(word, word) for word in re.findall(r"[a-z]+", text)]
    return {word for word in words if word in CLASS_NAMES}


def test_mask_follows_horizon_and_thing():
    drawing = draw(scene(thing()), 64, rng())
    name = np.array(CLASS_NAMES)[drawing.mask]
    assert name[32, 32] == "ball"
    assert set(name[:5].ravel()) == {"sky"}
    assert set(name[-5:].ravel()) == {"grass"}
    # A disc of radius 0.3 of 64 pixels.
    assert abs((name == "ball").sum() - np.pi * (0.3 * 64) ** 2) < 30


def test_pixels_have_the_colours_that_are_named():
    picture = draw(scene(thing(radius=0.2)), 64, rng()).image.astype(float)
    red, green, blue = picture[28:36, 28:36].mean((0, 1))
    assert red > 2 * green
    assert red > 2 * blue
    sky, grass = picture[:8].mean((0, 1)), picture[-8:].mean((0, 1))
    assert sky.argmax() == 2
    assert grass.argmax() == 1


def test_front_hides_back():
    hidden, front = thing("box", radius=0.15), thing("ball", radius=0.4)
    drawing = draw(scene(hidden, front), 64, rng())
    assert CLASS_NAMES.index("box") not in drawing.mask
    assert drawing.visible[0] == 0.0
    assert drawing.visible[1] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("kind", THINGS)
@pytest.mark.parametrize("material", MATERIALS)
def test_every_thing_is_drawn_in_every_material(kind, material):
    drawing = draw(scene(thing(kind, "purple", material=material)), 48, rng())
    covered = drawing.mask == CLASS_NAMES.index(kind)
    assert covered.mean() > 0.05
    assert drawing.visible[0] == pytest.approx(1.0, abs=0.1)
    assert np.ptp(drawing.image[covered].astype(float).mean(1)) > 5


def test_materials_look_different():
    pictures = [draw(scene(thing(material=m)), 48, rng()).image.astype(float) for m in MATERIALS]
    for i, a in enumerate(pictures):
        for b in pictures[i + 1 :]:
            assert np.abs(a - b).mean() > 0.5


def test_caption_names_attributes_and_never_what_is_hidden():
    things = (thing("fish", "blue"), thing("star", "red", material="striped", radius=0.4))
    texts = [caption(scene(*things), (0.05, 1.0), rng(seed)) for seed in range(30)]
    assert all("star" in text and "fish" not in text for text in texts)
    assert sum("red" in text for text in texts) > 8
    assert sum("striped" in text for text in texts) > 8
    assert sum("large" in text or "big" in text for text in texts) > 10
    assert len(set(texts)) > 20


def test_caption_counts_things_that_are_alike():
    things = (thing("box", "green", (0.3, 0.3)), thing("box", "green", (0.7, 0.7)))
    texts = [caption(scene(*things), (1.0, 1.0), rng(seed)) for seed in range(10)]
    assert all(re.search(r"\b(two|couple of|pair of)\b.*\bboxes\b", text) for text in texts)


def test_captions_agree_with_masks():
    for _, drawing, text in examples("train", 200):
        present = {CLASS_NAMES[i] for i in np.unique(drawing.mask)}
        assert mentioned_classes(text) <= present, text
        assert "  " not in text


def test_captions_tell_scenes_apart():
    texts = [text for _, _, text in examples("train", 300)]
    assert len(set(texts)) > 290
    words = {word for text in texts for word in text.split()}
    assert words >= {*STUFF, *THINGS, *COLOURS}


def test_examples_are_a_function_of_seed_split_and_index():
    first, again = examples("train", 3), examples("train", 3)
    for (_, a, text_a), (_, b, text_b) in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        assert text_a == text_b
    other = dataset.SceneConfig(name="other", size=32, seed=1)
    pictures = [
        first[0][1].image,
        first[1][1].image,
        dataset.make_example(CONFIG, "test", 0)[1].image,
        dataset.make_example(other, "train", 0)[1].image,
    ]
    assert len({picture.tobytes() for picture in pictures}) == 4


def test_shifted_scenes_differ_in_size_texture_and_colour():
    usual = [scene for scene, _, _ in examples("test", 60)]
    shifted = [scene for scene, _, _ in examples("shifted", 60)]

    def mean_radius(group):
        return np.mean([thing.radius for scene in group for thing in scene.things])

    assert mean_radius(shifted) < 0.85 * mean_radius(usual)
    assert min(s.texture_scale for s in shifted) > max(s.texture_scale for s in usual)
    assert {t.hue_shift for s in shifted for t in s.things} == {dataset.SHIFTED.hue_shift}


WITHOUT_TENSORFLOW = """
import sys
from importlib.machinery import PathFinder

class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in ("tensorflow", "tensorboard")
        return None if hidden else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hidden
from groupvit_jax.scenes import dataset

config = dataset.SceneConfig(name="test", size=32, num_train=24, num_eval=4)
builder = dataset.build(sys.argv[1], config)
example = builder.as_data_source("train")[5]
assert example["image"].shape == (32, 32, 3) and example["mask"].shape == (32, 32, 1)
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The set, built by a process in which TensorFlow can't be imported."""
    folder = tmp_path_factory.mktemp("data")
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, str(folder)]
    subprocess.run(command, check=True, timeout=PATIENCE)
    return folder


def test_builds_and_reads_without_tensorflow(built):
    assert (built / "scenes/test/2.0.0/features.json").exists()
    assert list(built.glob("scenes/test/2.0.0/*train*array_record*"))


def test_splits_hold_the_examples_that_were_drawn(built):
    source = dataset.build(str(built), CONFIG).as_data_source("train")
    assert len(source) == 24
    drawn = {text: drawing for _, drawing, text in examples("train", 24)}
    for index in range(24):
        drawing = drawn[source[index]["caption"].decode()]
        np.testing.assert_array_equal(source[index]["image"], drawing.image)
        np.testing.assert_array_equal(source[index]["mask"][..., 0], drawing.mask)


def test_training_sees_images_and_captions_but_no_masks(built):
    folder = str(built / "scenes/test/2.0.0")
    source = make_source("scenes", {"kind": "tfds", "split": "train", "data_dir": folder})
    sample = source[0]
    assert set(sample) == {"image", "captions", "key"}
    pixels = cv2.imdecode(np.frombuffer(sample["image"], np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape == (32, 32, 3)
    assert mentioned_classes(sample["captions"][0])


def test_building_again_keeps_the_files(built):
    files = sorted(built.glob("scenes/test/2.0.0/*"))
    times = [file.stat().st_mtime_ns for file in files]
    dataset.build(str(built), CONFIG)
    assert [file.stat().st_mtime_ns for file in files] == times
