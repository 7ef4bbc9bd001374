"""Runs with other vocabularies than CLIP's: trained, resumed, moved, and used by the commands."""

import json
import shutil

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from configs import tiny
from groupvit_jax.data.text.tokenizers import train_sentencepiece
from groupvit_jax.data.text.vocabulary import read_vocabulary
from groupvit_jax.eval.evaluators import make_evaluators
from groupvit_jax.interop import INITIALISERS, initialise_text_from, load_pretrained
from groupvit_jax.interop.layout import flatten
from groupvit_jax.runs import exit_codes
from groupvit_jax.train.loop import train
from groupvit_jax.train.setup import build
from launch import evaluate, export, overrides, segment
from tests.data.eval_sets import miniatures
from tests.data.image_files import photo
from tests.data.shard_files import encode, write_tar

THINGS = ("dog", "cat", "boat", "tree", "house", "bird", "kite", "car")
CAPTIONS = [f"a {thing} near the {THINGS[i * 3 % 8]}" for i, thing in enumerate(THINGS * 5)]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{c}" for c in LETTERS), *THINGS, "."]


def write_bert(directory):
    """A BERT of random weights as transformers writes it, with its vocabulary."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch").manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(PIECES),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    transformers.BertModel(config).save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return directory


def small_config(folder, num_steps):
    config = tiny.get_config()
    pairs = [
        (f"{i:04d}", {"jpg": encode(value=9 * (i % 25), height=36, width=40), "txt": c.encode()})
        for i, c in enumerate(CAPTIONS)
    ]
    config.data.sources.pairs.pattern = write_tar(folder / "pairs.tar", pairs)
    config.tensorboard = False
    config.train.num_steps = num_steps
    config.optimizer.warmup_steps = 1
    config.checkpoint.every_steps = 2
    config.model.image.update(
        depths=(1, 1), num_group_tokens=(4, 0), num_output_groups=(4,), width=16
    )
    return config


def use_bert(config, folder):
    bert = write_bert(folder / "bert")
    config.text_init_from = str(bert)
    config.data.tokenizer.update(name="wordpiece", path=str(bert / "vocab.txt"))
    config.model.text.update(
        kind="bert", vocab_size=len(PIECES), end_of_text_id=3, mlp_ratio=2.0, context_length=24
    )
    config.optimizer.groups = (
        (r"text_encoder/(token_|position_|embedding_norm|blocks_0/)", 0.0),
        (r"text_encoder/", 0.1),
    )


def use_sentencepiece(config, folder):
    path = folder / "captions.model"
    path.write_bytes(train_sentencepiece(CAPTIONS, 284))
    config.data.tokenizer.update(name="sentencepiece", path=str(path))
    config.model.text.update(vocab_size=284, end_of_text_id=3, context_length=24, num_layers=1)


TOWERS = {"bert": use_bert, "sentencepiece": use_sentencepiece}


def configured(folder, tower, num_steps=4):
    folder.mkdir(exist_ok=True)
    config = small_config(folder, num_steps)
    TOWERS[tower](config, folder)
    return config


def run(config, workdir):
    return train(
        config,
        workdir,
        make_evaluators=lambda p: make_evaluators(p.config, p.model, p.tokenizer, p.mesh),
        initialisers=INITIALISERS,
    )


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module", params=TOWERS)
def trained(request, tmp_path_factory):
    """The tower's name, and the last step of a run of 4 steps, stopped after 2, alone in a folder.

    Vocabulary, data, the BERT and the rest of the run are gone.
    """
    folder = tmp_path_factory.mktemp(request.param)
    made = folder / "made"
    config = configured(made, request.param)
    vocabulary = read_vocabulary(config.data.tokenizer.name, config.data.tokenizer.path)
    config.train.num_steps = 2
    assert run(config, made / "run").step == 2
    config.train.num_steps = 4
    config.evaluators.pairs = dict(
        kind="retrieval", every_steps=4, source=dict(config.data.sources.pairs)
    )
    assert run(config, made / "run").step == 4
    assert [start["step"] for start in read_lines(made / "run/starts.jsonl")] == [0, 2]
    lines = read_lines(made / "run/metrics.jsonl")
    metrics = {name: value for line in lines for name, value in line.items()}
    assert np.isfinite(metrics["loss"])
    assert 0 <= metrics["pairs/image_to_text_r1"] <= 1
    (folder / "alone").mkdir()
    shutil.move(made / "run" / "checkpoints" / "4", folder / "alone" / "4")
    start = flatten(load_start(made)) if request.param == "bert" else {}
    shutil.rmtree(made)
    return request.param, folder / "alone" / "4", vocabulary, start


def load_start(folder):
    """The text tower as it was before the first step."""
    config = configured(folder / "again", "bert")
    parts = build(config, folder / "fresh")
    state = parts.fresh_state()
    params, _, _ = initialise_text_from(
        folder / "bert", state.params, state.batch_stats, config.model
    )
    return jax.device_get(params["text_encoder"])


@pytest.mark.slow
def test_a_moved_checkpoint_has_its_vocabulary(trained):
    _, step, vocabulary, _ = trained
    assert load_pretrained(step).tokenizer == vocabulary


@pytest.mark.slow
def test_a_moved_checkpoint_segments_with_no_other_file(trained, tmp_path, monkeypatch):
    _, step, _, _ = trained
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photo(40, 60, 0)).save("a.png")
    arguments = ["a.png", f"--checkpoint={step}", "--labels=dog,boat", "--output=out"]
    assert segment.main(segment.parse_flags(["segment", *arguments])) == 0
    assert (tmp_path / "out" / "a_mask.png").exists()


@pytest.mark.slow
def test_a_moved_checkpoint_is_evaluated(trained, tmp_path):
    _, step, _, _ = trained
    miniatures.voc(tmp_path)
    argv = ["evaluate", f"--checkpoint={step}", f"--data_dir={tmp_path}"]
    with flagsaver.flagsaver():
        flags.FLAGS([*argv, f"--output={tmp_path / 'out'}", "--benchmarks=voc", "--examples=0"])
        assert evaluate.main([]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert 0 <= found["benchmarks"]["voc"]["metrics"]["miou"] <= 1


@pytest.mark.slow
def test_a_moved_checkpoint_is_exported_with_its_vocabulary(trained, tmp_path, capsys):
    tower, step, vocabulary, _ = trained
    arguments = [f"--checkpoint={step}", f"--output={tmp_path}"]
    formats = "--format=safetensors,stablehlo"
    export.main(export.parse_flags(["export", *arguments, formats]))
    name = {"bert": "vocab.txt", "sentencepiece": "tokenizer.model"}[tower]
    for kind in ("safetensors", "stablehlo"):
        assert (tmp_path / kind / name).read_bytes() == vocabulary.content
        described = json.loads((tmp_path / kind / "config.json").read_text())["tokenizer"]
        assert described["fingerprint"] == vocabulary.fingerprint
    assert load_pretrained(tmp_path / "safetensors").tokenizer == vocabulary
    if tower == "bert":
        for kind in ("huggingface", "original"):
            capsys.readouterr()
            with pytest.raises(SystemExit) as stopped:
                export.main(export.parse_flags(["export", *arguments, f"--format={kind}"]))
            assert stopped.value.code == exit_codes.BAD_INPUT
            errors = capsys.readouterr().err
            assert "model.text.kind: 'bert', but" in errors
            assert errors.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["sentencepiece"], indirect=True)
def test_the_model_card_of_a_moved_checkpoint_describes_its_run(trained, tmp_path):
    _, step, _, _ = trained
    arguments = [f"--checkpoint={step}", f"--output={tmp_path}", "--license=cc0-1.0"]
    export.main(export.parse_flags(["export", *arguments, "--format=huggingface"]))
    card = (tmp_path / "huggingface" / "README.md").read_text()
    for text in ("license: cc0-1.0", "| length | 4 steps |", "| pairs | image_to_text_r1 |"):
        assert text in card
    assert (tmp_path / "huggingface" / "tokenizer.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["bert"], indirect=True)
def test_what_is_frozen_stays_as_it_was_imported(trained):
    _, step, _, start = trained
    found = flatten(load_pretrained(step).variables["params"]["text_encoder"])
    assert found.keys() == start.keys()
    same = {name for name, array in found.items() if np.array_equal(array, start[name])}
    frozen = ("token_embedding", "position_", "token_type_", "embedding_norm", "blocks_0/")
    assert {name for name in found if name.startswith(frozen)} <= same
    # A key's bias has no gradient but rounding.
    changed = {name for name in found if name.startswith("blocks_1/")} - same
    assert "blocks_1/attn/qkv/kernel" in changed
    assert "blocks_1/norm2/scale" in changed


def test_groups_are_set_on_the_command_line():
    config, _ = overrides.read(
        [
            "train",
            "--config=configs/tiny.py",
            "--config.optimizer.groups=(('text_encoder/blocks_0', 0.0), ('text_encoder', 0.1))",
        ]
    )
    assert config.optimizer.groups == (("text_encoder/blocks_0", 0.0), ("text_encoder", 0.1))
