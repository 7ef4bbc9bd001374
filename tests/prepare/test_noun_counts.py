import dataclasses
import json
from pathlib import Path

from groupvit_jax.prepare.noun_counts import read_nouns
from groupvit_jax.prepare.preparation import Options, prepare
from groupvit_jax.prepare.runners import local_runner
from tests.data.shard_files import encode, write_tar

CAPTIONS = ["a dog and a Dog", "the dog on the grass", "a ball", "grass", "a tree", "a tree"]


def test_the_most_frequent_nouns_of_all_shards(tmp_path):
    for part in (0, 1):
        samples = [
            (str(i), {"jpg": encode(value=20 * i + part), "txt": caption.encode()})
            for i, caption in enumerate(CAPTIONS[part::2])
        ]
        write_tar(tmp_path / f"{part}.tar", samples)
    options = Options(f"{tmp_path}/*.tar", str(tmp_path / "out"), noun_bank=3)
    prepare(options, local_runner(1))
    written = Path(options.output, "nouns.json")
    assert json.loads(written.read_text()) == {"dog": 2, "grass": 2, "tree": 2}
    assert read_nouns(options.output) == ["dog", "grass", "tree"]
    # They are counted anew if they are lost, and are not listed unless asked for.
    content = written.read_bytes()
    written.unlink()
    prepare(options, local_runner(1))
    assert written.read_bytes() == content
    other = dataclasses.replace(options, output=str(tmp_path / "other"), noun_bank=0)
    prepare(other, local_runner(1))
    assert not Path(other.output, "nouns.json").exists()
