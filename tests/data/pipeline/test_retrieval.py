import numpy as np

from groupvit_jax.data.pipeline.retrieval import eval_examples
from groupvit_jax.data.sources.pairs import WebDatasetSource
from tests.data.shard_files import write_broken, write_pairs


def test_eval_sees_every_sample_once_in_order_on_any_number_of_hosts(tmp_path):
    source = WebDatasetSource([write_pairs(tmp_path / "a.tar", range(11))])
    single = list(eval_examples(source, 4, resize=8, crop=6))
    assert len(single) == 3
    assert single[0]["image"].shape == (4, 6, 6, 3)
    kept = [index for batch in single for index in batch["index"][batch["_mask"]]]
    assert kept == list(range(11))
    captions = [texts for batch in single for texts in batch["captions"]]
    assert captions == [[f"caption {i}"] for i in range(11)] + [[]]
    greys = np.concatenate([batch["image"][:, 3, 3, 0] for batch in single])
    assert np.abs(greys[:11].astype(int) - range(11)).max() <= 1
    hosts = [
        list(eval_examples(source, 4, resize=8, crop=6, host_index=h, host_count=2))
        for h in range(2)
    ]
    for batch, parts in zip(single, zip(*hosts, strict=True), strict=True):
        for name in ("image", "index", "_mask"):
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), batch[name])


def test_eval_masks_broken_samples(tmp_path, caplog):
    source = WebDatasetSource([write_broken(tmp_path / "a.tar")])
    [batch] = eval_examples(source, 10, resize=8, crop=8)
    np.testing.assert_array_equal(np.flatnonzero(~batch["_mask"]), [3, 4, 5, 6])
    assert batch["captions"][5] == []
    assert "a.tar: 4: empty caption" in caplog.text
