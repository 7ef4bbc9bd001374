import json
import math

import pytest

from groupvit_jax.eval import result_store
from groupvit_jax.eval.result_store import ResultStore

WEIGHTS = {"path": "run", "sha256": "1" * 64}


def identity(fingerprint="f", threshold=0.5, path="/mine", version="1"):
    protocol = {"background_threshold": threshold, "background_rule": "window", "prompts": ["{}"]}
    return {
        "set": {"name": "folder", "path": path, "images": 2, "fingerprint": fingerprint},
        "settings": {"protocol": protocol},
        "version": version,
    }


def entry(miou=0.5, **changes):
    result = {"metrics": {"miou": miou}, "classes": {}, "images": 2, "protocol": "groupvit"}
    return identity(**changes) | result


@pytest.fixture
def store(tmp_path):
    store = ResultStore(tmp_path, WEIGHTS, {})
    store.keep("mine", entry())
    store.write()
    return ResultStore(tmp_path, WEIGHTS, {})


def test_a_result_is_reused_only_while_it_holds(store):
    row, before = store.row_of("mine", identity())
    assert (row, before["metrics"]) == ("mine", {"miou": 0.5})
    assert before["measured"].endswith("UTC")
    assert store.row_of("mine", identity(version="2")) == ("mine", None)
    assert store.row_of("mine", identity(threshold=0.4)) == ("mine 2", None)
    assert store.row_of("mine", identity(path="/other/mine")) == ("mine 2", None)
    assert store.dropped == []
    # The masks were corrected: whatever was measured before is gone.
    assert store.row_of("mine", identity(fingerprint="g")) == ("mine", None)
    assert store.dropped == ["mine"]


def test_reserved_rows_are_given_back(store):
    row, _ = store.row_of("mine", identity(threshold=0.4))
    store.reserve(row, identity(threshold=0.4))
    assert store.row_of("mine", identity(threshold=0.3)) == ("mine 3", None)
    store.release()
    assert list(store.content["benchmarks"]) == ["mine"]


def test_results_of_other_weights_are_moved_aside(store, tmp_path):
    other = ResultStore(tmp_path, {"path": "run", "sha256": "2" * 64}, {})
    assert other.content["benchmarks"] == {}
    assert other.set_aside == tmp_path / "results-111111111111.json"
    assert json.loads(other.set_aside.read_text())["benchmarks"]["mine"]["metrics"] == {"miou": 0.5}


def test_json_is_valid_whatever_was_measured(store, tmp_path):
    store.keep("mine 2", entry(math.nan, threshold=0.4) | {"classes": {"a": math.inf}})
    store.write()

    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    found = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert found["benchmarks"]["mine 2"]["metrics"] == {"miou": None}
    assert "nan" not in (tmp_path / "results.md").read_text()


def test_table_and_best_threshold_of_a_sweep(store, tmp_path):
    for number, (threshold, miou) in enumerate([(0.4, 0.6), (0.3, 0.55)], 2):
        changed = {"changed": {"stride": 7, "resize": (64, 32)}}
        store.keep(f"mine {number}", entry(miou, threshold=threshold) | changed)
    store.write()
    table = (tmp_path / "results.md").read_text()
    assert "| mine 2 | groupvit | 0.4, window |  | 1 | stride=7, resize=64x32 | 2 | 20" in table
    assert "Of 3 background thresholds of mine, 0.4 gives the best mIoU, 60.00" in table
    assert "mine 3: /mine" in table


def test_version_tells_edits_of_the_code_apart():
    assert result_store.code_version() == result_store.code_version()
    assert "+" in result_store.code_version()
