import pytest

from groupvit_jax.data.eval_sets.mask_files import class_names as names_of_set
from groupvit_jax.eval.protocol import PROTOCOLS, class_names, make_protocol

# The published evaluation's names of Pascal Context, in the order of the masks' values from 1.
CONTEXT = (
    "airplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book", "bottle",
    "building", "bus", "cabinet", "car", "cat", "ceiling", "chair", "cloth", "computer", "cow",
    "cup", "curtain", "dog", "door", "fence", "floor", "flower", "food", "grass", "ground", "horse",
    "keyboard", "light", "motorbike", "mountain", "mouse", "person", "plate", "platform", "plant",
    "road", "rock", "sheep", "shelves", "sidewalk", "sign", "sky", "snow", "sofa", "table", "track",
    "train", "tree", "truck", "monitor", "wall", "water", "window", "wood",
)  # fmt: skip
# Of both protocols alike, but for three.
VOC = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table",
    "dog", "horse", "motorbike", "person", "plant", "sheep", "sofa", "train", "monitor",
)  # fmt: skip


def test_published_protocol():
    voc = make_protocol("groupvit", "voc", has_background=True)
    assert (voc.resize, voc.window, voc.stride, voc.num_kept) == ((2048, 448), 448, 224, 5)
    assert (voc.background_threshold, voc.background_rule) == (0.95, "window")
    assert voc.prompts == ("a photo of a {}.",)
    assert (voc.partial_patches, voc.pamr_iterations) == ("drop", 0)
    assert make_protocol("groupvit", "context", has_background=True).background_threshold == 0.35
    assert make_protocol("groupvit", "context59").background_threshold is None


def test_common_protocol():
    voc = make_protocol("tcl", "voc", has_background=True)
    assert voc.background_rule == "constant"
    assert voc.prompts == (
        "itap of a {}.",
        "a bad photo of a {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
        "a photo of many {}.",
        "a photo of {}s.",
    )
    assert (voc.pamr_iterations, voc.pamr_dilations) == (10, (1, 2, 4, 8, 12, 24))
    assert voc.pamr_place == "window"
    assert voc.partial_patches == "pad"
    for benchmark in ("voc", "context", "coco_object", "folder"):
        protocol = make_protocol("tcl", benchmark, has_background=True)
        assert protocol.background_threshold == 0.4
    unrefined = make_protocol("tcl", "voc", has_background=True, pamr_iterations=0)
    assert unrefined.pamr_iterations == 0
    assert make_protocol("tcl", "voc20", pamr_place="image").pamr_place == "image"


def test_class_names_are_the_protocols():
    context, voc, ade = map(names_of_set, ("context", "voc", "ade20k"))
    for benchmark in ("context", "context59"):
        assert class_names("groupvit", benchmark, context) == CONTEXT
        own = class_names("tcl", benchmark, context)
        assert [(i, a) for i, (a, b) in enumerate(zip(own, CONTEXT, strict=True)) if a != b] == [
            (0, "aeroplane"), (39, "pottedplant"), (54, "tvmonitor"),
        ]  # fmt: skip
    for benchmark in ("voc", "voc20"):
        assert class_names("groupvit", benchmark, voc) == VOC
        own = class_names("tcl", benchmark, voc)
        assert [(i, a) for i, (a, b) in enumerate(zip(own, VOC, strict=True)) if a != b] == [
            (10, "diningtable"), (15, "pottedplant"), (19, "tvmonitor"),
        ]  # fmt: skip
    assert class_names("tcl", "ade20k", ade)[89] == "television receiver"
    assert class_names("groupvit", "ade20k", ade)[89] == "television"
    # A folder of one's own keeps its names, whatever they are.
    assert class_names("tcl", "folder", ("table", "monitor")) == ("table", "monitor")


def test_knobs_differ_where_they_are_given():
    protocol = make_protocol("groupvit", stride=112, window=None, resize=[512, 256])
    assert (protocol.stride, protocol.window, protocol.resize) == (112, 448, (512, 256))
    assert PROTOCOLS["groupvit"].stride == 224


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"stride": 500}, "stride=500: expected at most the window of 448"),
        ({"stride": 0}, "stride=0: expected at least 1"),
        ({"num_kept": 0}, "num_kept=0: expected at least 1"),
        ({"resize": (448,)}, r"resize=\(448,\): expected two sides"),
        ({"background_rule": "none"}, "background_rule='none': expected one of"),
        ({"partial_patches": "keep"}, "partial_patches='keep': expected one of"),
        ({"pamr_place": "pixels"}, "pamr_place='pixels': expected one of"),
        ({"background_threshold": 0.5}, "background_threshold: voc20 has no background"),
    ],
)
def test_wrong_knobs_are_named(knobs, message):
    with pytest.raises(ValueError, match=message):
        make_protocol("groupvit", "voc20", **knobs)


def test_unknown_protocols_and_knobs_are_named():
    with pytest.raises(ValueError, match="protocol: 'mmseg' found, expected one of"):
        make_protocol("mmseg")
    with pytest.raises(TypeError, match="strides"):
        make_protocol("groupvit", strides=3)
