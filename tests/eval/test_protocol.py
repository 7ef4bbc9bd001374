import pytest

from groupvit_jax.eval.protocol import PROTOCOLS, make_protocol


def test_published_protocol():
    voc = make_protocol("groupvit", "voc", has_background=True)
    assert (voc.resize, voc.window, voc.stride, voc.num_kept) == ((2048, 448), 448, 224, 5)
    assert (voc.background_threshold, voc.background_rule) == (0.95, "window")
    assert voc.prompts == ("a photo of a {}.",)
    assert make_protocol("groupvit", "context", has_background=True).background_threshold == 0.35
    assert make_protocol("groupvit", "context59").background_threshold is None


def test_common_protocol():
    voc = make_protocol("tcl", "voc", has_background=True)
    assert voc.background_rule == "constant"
    assert len(voc.prompts) == 9
    assert voc.pamr_iterations == 0
    refined = make_protocol("tcl", "voc", has_background=True, pamr_iterations=10)
    assert refined.pamr_dilations == (1, 2, 4, 8, 12, 24)


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
