"""Sets of one's own from their files to the mIoU, which is counted by hand from what was drawn."""

import numpy as np
import PIL.Image
import pytest

from groupvit_jax import evaluate
from groupvit_jax.data.eval_sets.mask_values import voc_colours
from tests.data.eval_sets import miniatures

NOTHING = -1  # in a drawn map: not evaluated
SHAPE = (8, 12)


def drawn(seed, classes):
    """A map of classes in blocks of 2 x 2."""
    blocks = np.random.default_rng(seed).choice(classes, (SHAPE[0] // 2, SHAPE[1] // 2))
    return blocks.repeat(2, 0).repeat(2, 1)


def predict(image):
    """Labels from the photo's own pixels, so that photos and masks have to match."""
    return (image[..., 0] > 90).astype(int) + (image[..., 1] > 128)


def counted(maps, photos, num_classes):
    """The mIoU as the field defines it, class by class."""
    found = [np.minimum(predict(photo), num_classes - 1) for photo in photos]
    ious = []
    for class_ in range(num_classes):
        pairs = [(m == class_, (f == class_) & (m != NOTHING)) for m, f in zip(maps, found)]  # noqa: B905
        both = sum((truth & guess).sum() for truth, guess in pairs)
        either = sum((truth | guess).sum() for truth, guess in pairs)
        ious += [both / either] if either else []
    return np.mean(ious)


# For each kind of set: classes.txt; class -> what its masks store; places of photos and masks.
INDICES = {0: 0, 1: 1, 2: 2}
PLACES = ("images/{}.jpg", "masks/{}.png")
SETS = {
    "plain": ("background\nperson\ngrass\n", INDICES, PLACES),
    "nested": ("background\nperson\ngrass\n", INDICES, ("images/val/{}.jpg", "masks/val/{}.png")),
    "suffix": ("background\nperson\ngrass\n", INDICES, ("images/{}.jpg", "masks/{}_mask.png")),
    "TIFF photos": ("background\nperson\ngrass\n", INDICES, ("images/{}.tif", "masks/{}.png")),
    "colours": (
        "background\nperson\ngrass\n", dict(enumerate(voc_colours(3))), PLACES
    ),
    "labels from one": ("wall\nfloor\n", {NOTHING: 0, 0: 1, 1: 2}, PLACES),
    "blank lines and comments": ("sky\n\nroad\n# 4 lane\ncar\n", {0: 0, 1: 2, 2: 4}, PLACES),
    "255 unlabelled": ("background\nperson\ngrass\n", {NOTHING: 255, **INDICES}, PLACES),
    "0 unlabelled": ("unlabelled\nperson\ngrass\n", {NOTHING: 0, 0: 1, 1: 2}, PLACES),
    "16 bits": ("background: 0\nperson: 300\ngrass: 70\n", {0: 0, 1: 300, 2: 70}, PLACES),
}  # fmt: skip


def write(root, stored, places, seed):
    """Writes two photos with masks; returns the maps of classes and the photos as they are read."""
    maps, photos = [], []
    for number, stem in enumerate("ab"):
        classes = drawn(seed + number, list(stored))
        photo = np.random.default_rng(seed + 9 + number).integers(0, 256, (*SHAPE, 3), np.uint8)
        values = np.array([stored[c] for c in classes.ravel()])
        dtype = np.uint16 if values.max() > 255 else np.uint8
        mask = values.astype(dtype).reshape(*SHAPE, *values.shape[1:])
        for place, pixels in zip(places, (photo, mask), strict=True):
            path = root / place.format(stem)
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(pixels).save(path)
        with PIL.Image.open(root / places[0].format(stem)) as image:
            photos.append(np.asarray(image.convert("RGB")))
        maps.append(classes)
    return maps, photos


@pytest.mark.parametrize("kind", SETS)
def test_each_kind_of_set_gives_the_miou_counted_by_hand(kind, tmp_path):
    names, stored, places = SETS[kind]
    miniatures.write_text(tmp_path / "classes.txt", names)
    maps, photos = write(tmp_path, stored, places, seed=len(kind))
    num_classes = len(stored.keys() - {NOTHING})
    found = evaluate(lambda image: np.minimum(predict(image), num_classes - 1), tmp_path)
    assert found["miou"] == pytest.approx(counted(maps, photos, num_classes), abs=1e-12)
    assert 0.05 < found["miou"] < 0.95


@pytest.mark.parametrize(
    ("names", "stored", "message"),
    [
        ("crane\nbuilding\ncrane\n", INDICES, r"classes.txt: 'crane' found twice"),
        ("background\nlesion\n", {0: 0, 1: 255}, r"if 255 is 'lesion', write 'lesion: 255'"),
        ("wall\nfloor\n", {NOTHING: 255}, r"nothing is labelled"),
    ],
)
def test_what_would_give_a_wrong_figure_is_refused(names, stored, message, tmp_path):
    miniatures.write_text(tmp_path / "classes.txt", names)
    write(tmp_path, stored, PLACES, seed=0)
    with pytest.raises(ValueError, match=message):
        evaluate(predict, tmp_path)
