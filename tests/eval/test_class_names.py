"""Labels by class names: what a protocol's names change, and what they must not change."""

import functools

import numpy as np
import pytest

from groupvit_jax.data.eval_sets.mask_files import class_names as names_of_set
from groupvit_jax.eval.inference import WindowEncoder
from groupvit_jax.eval.protocol import class_names, make_protocol
from groupvit_jax.eval.segment_images import ImageSegmenter
from tests.eval.photos import NAMES, Photos, spread_text, with_highest_scale
from tests.eval.test_protocol import CONTEXT, VOC

# The things of COCO, from its own annotations.
COCO_OBJECT = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
SIZES = [(24, 24)] * 32  # one window each, of one or two classes
OWN_NAMES = {
    "voc": names_of_set("voc"),
    "context": names_of_set("context"),
    "coco_object": names_of_set("coco_stuff")[:80],
}


@pytest.fixture(scope="module")
def labels(encoder, variables):
    """The labels of the photos for class names, by random towers at the highest scale."""
    variables = with_highest_scale(variables)
    directions = spread_text(encoder, variables)[: len(NAMES) // 2]

    @functools.cache
    def segment(names, benchmark):
        # Without background, whose label doesn't depend on the names.
        protocol = make_protocol("groupvit", benchmark, window=24)
        text = encoder.class_embeddings(variables, names, protocol.prompts)
        # Random towers put all texts close together, and all groups like the same of them best. So
        # the texts are spread evenly over the directions in which groups differ.
        spread = np.linalg.svd(text - text.mean(0), full_matrices=False)[0][:, : len(directions)]
        spread /= np.linalg.norm(spread, axis=1, keepdims=True)
        text = np.float32(spread @ directions)
        segmenter = ImageSegmenter(WindowEncoder(encoder, protocol))
        found = segmenter(variables, text, [image for image, _ in Photos(SIZES)])
        return np.concatenate([each.mask.ravel() for each in found])

    return segment


@pytest.mark.parametrize(("benchmark", "published"), [("voc", VOC), ("coco_object", COCO_OBJECT)])
def test_the_published_protocol_leaves_labels_as_they_were(labels, benchmark, published):
    own = OWN_NAMES[benchmark]
    assert len(published) == {"voc": 20, "coco_object": 80}[benchmark]
    before, after = (labels(n, benchmark) for n in (own, class_names("groupvit", benchmark, own)))
    np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(after, labels(published, benchmark))
    assert len(np.unique(after)) >= 8  # so that a changed name would show


def test_labels_of_context_are_those_of_the_published_names(labels):
    own = OWN_NAMES["context"]
    found = labels(class_names("groupvit", "context", own), "context")
    np.testing.assert_array_equal(found, labels(CONTEXT, "context"))
    assert len(np.unique(found)) >= 8
    assert (found != labels(own, "context")).mean() > 0.01
