"""Every wrong value is found before anything starts, in the same words by all commands."""

import json

import pytest

from configs import base, tiny
from groupvit_jax.runs import exit_codes
from groupvit_jax.sweep.trials import flag_of
from launch import (
    common,
    overrides,
    plan,
    sweep_plan,
    train,  # noqa: F401  It defines --config.
)

TINY = "--config=configs/tiny.py"
# (field, value, what the line says after the field's name)
WRONG = [
    ("data.noun_kind", "word", "'word' found, expected 'tagged_words' or 'words' or 'phrases'"),
    ("init_from", "/nonexistent", "'/nonexistent' found, where there is no file or folder"),
    ("text_init_from", "/nonexistent", "'/nonexistent' found, where there is no file or folder"),
    ("profile_steps", (2,), "(2,) found, expected (first, last) steps"),
    ("profile_steps", (9, 2), "(9, 2) found, expected (first, last) steps"),
    ("data.num_workers", -1, "-1 found, expected a whole number of at least 0"),
    ("data.tokenizer.name", "bpe", "'bpe' found, expected 'clip' or 'sentencepiece' or"),
    ("model.dtype", "bf16", "'bf16' found, expected 'bfloat16' or 'float32'"),
    ("model.dtype", "nan", "'nan' found, expected 'bfloat16' or 'float32'"),
    ("model.remat", "all", "'all' found, expected 'none' or 'dots' or 'blocks'"),
    ("model.image.num_heads", 0, "0 found, expected a whole number of at least 1"),
    ("model.image.width", 33, "33 found, expected a multiple of num_heads 2"),
    ("model.image.depths", (1, 1), "(8, 4, 0) found, expected one entry a stage of depths"),
    ("model.image.temperature", 0.0, "0.0 found, expected a number over 0"),
    ("model.image.drop_path_rate", 1.0, "1.0 found, expected a number of at least 0 and below 1"),
    ("model.text.num_layers", 0, "0 found, expected a whole number of at least 1"),
    ("model.text.num_heads", 3, "3 found, expected a divisor of the width 32"),
    ("parallel.rules", (("(", 0.1),), "(('(', 0.1),) found, expected a tuple of (regular"),
    ("parallel.rules", ((".*", ("model",)),), "expected a tuple of (regular"),
    ("parallel.mesh.fsdp", 0, "0 found, expected a whole number of at least 1, or -1"),
    ("optimizer.groups", 3, "found, expected a tuple of (regular expression, factor"),
    ("optimizer.groups", (("fc1(", 1.0),), "found, expected a tuple of (regular expression"),
    ("optimizer.b2", 1.0, "1.0 found, expected a number of at least 0 and below 1"),
    ("data.sources.pairs.pattern", ["a.tar", "b.tar"], "found, expected one text; a comma or"),
    ("data.sources.pairs.weight", -1.0, "-1.0 found, expected a number over 0"),
    ("data.sources.pairs.kind", "tar", "'tar' found, expected 'webdataset' or 'tfds'"),
    ("data.augment.min_area", 2.0, "2.0 found, expected at most config.data.augment.max_area"),
    ("train.num_steps", 1e3, "'1000.0' found, expected a whole number of at least 1, or None"),
    ("train.micro_batch_size", 5, "5 found, expected a divisor of config.train.batch_size = 16"),
    ("model.image.depths[0]", 2, "'2' found, expected the whole value: --config.model.image.dep"),
    ("loss.kind", "hinge", "'hinge' found, expected 'softmax' or 'sigmoid'"),
    ("loss.identical_texts", "ignored", "'ignored' found, expected 'negatives' or 'positives'"),
    ("loss.local_words", "nouns", "'nouns' found, expected 'tokens' or 'prompts'"),
    ("loss.local_weight", -1.0, "-1.0 found, expected a number of at least 0"),
    ("checkpoint.best_metric", "voc/miou", "'voc/miou' found, expected EVALUATOR/METRIC with"),
    ("task", "detection", "'detection' found, expected 'contrastive' or 'segmentation'"),
    ("train.fused_attention", True, "moved, expected config.model.fused_attention"),
    ("train.batchsize", 4, "no such field, the nearest is config.train.batch_size"),
    ("train", 5, "'5' found, expected --config.train.NAME=VALUE"),
    ("evaluators", {"x": {"kind": "guess"}}, "'guess' found, expected 'off' or 'benchmark' or"),
    (
        "evaluators",
        {"x": {"kind": "knn", "neighbours": 3}},
        "no such field, 'knn' has kind, every_steps, benchmark, data_dir",
    ),
]


def argv(field, value):
    return ["launch.x", TINY, flag_of(field, value)]


@pytest.fixture(scope="module")
def errors_of_a_sweep(tmp_path_factory):
    """Lines by trial: one answer for all the wrong values."""
    folder = tmp_path_factory.mktemp("sweep")
    trials = [{field: value} for field, value, _ in WRONG]
    (folder / "mine.py").write_text(
        f"BASE = 'configs/tiny.py'\ndef get_sweep():\n    return {trials!r}\n"
    )
    planned = sweep_plan.plan(str(folder / "mine.py"), "s")
    return sweep_plan.check(planned, folder / "out")


@pytest.mark.parametrize("number", range(len(WRONG)), ids=lambda i: f"{WRONG[i][0]}={WRONG[i][1]}")
def test_all_commands_say_the_same(number, errors_of_a_sweep, capsys):
    field, value, text = WRONG[number]
    _, lines = overrides.read_valid(argv(field, value))
    (line,) = lines
    assert line.startswith("config.")
    assert text in line
    for command in (common.parse_flags, plan.parse_flags):
        more = ["--topology=v5e:2x2"] if command is plan.parse_flags else []
        with pytest.raises(SystemExit) as end:
            command([*argv(field, value), *more])
        assert end.value.code == exit_codes.BAD_INPUT
        assert capsys.readouterr().err == f"error: {line}\n"
    assert len(errors_of_a_sweep) == len(WRONG)
    trial, _, said = errors_of_a_sweep[number].partition("): ")
    assert trial.startswith(f"trial {number} (")
    assert without_value(said) == without_value(line)


def without_value(line):
    """The line without what was found: a sweep file holds a value, a flag its text."""
    return line.partition(" found")[2] or line


def test_all_errors_are_listed_at_once():
    _, lines = overrides.read_valid(
        [
            "launch.x",
            TINY,
            "--config.model.image.num_heads=0",
            "--config.train.num_steps=1e3",
            "--config.sed=1",
            "--config.loss.kind=hinge",
            "--config.evaluators={'x': {'kind': 'guess'}}",
        ]
    )
    fields = [line.partition(":")[0].removeprefix("config.") for line in lines]
    assert sorted(fields) == [
        "evaluators.x.kind", "loss.kind", "model.image.num_heads", "sed", "train.num_steps"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("evaluators.retrieval.every_steps=100", 100),
        ("evaluators.retrieval.captions_per_image=1", 1),
        ("evaluators.retrieval.kind=off", "off"),
        ("data.sources.pairs.weight=0.5", 0.5),
        ("data.sources.pairs.exchange_captions=True", True),
        ("train.micro_batch_size=None", None),
        ("train.num_steps=None", None),
        ("train.micro_batch_size=8", 8),
        ("optimizer.groups=((r'text_encoder/', 0.1),)", (("text_encoder/", 0.1),)),
        ("model.image.depths=(2, 1, 1)", (2, 1, 1)),
        ("tensorboard=False", False),
    ],
)
def test_documented_fields_are_set_whether_listed_or_not(override, value):
    config, lines = overrides.read_valid(
        ["launch.x", "--config=configs/small_pairs.py", f"--config.{override}"]
    )
    assert list(lines) == []
    found = config
    for name in override.partition("=")[0].split("."):
        found = found[name]
    assert found == value


def test_a_micro_batch_is_switched_off_again(tmp_path):
    config = tiny.get_config()
    config.train.micro_batch_size = 8
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    changed, lines = overrides.read_valid(
        ["launch.x", f"--config={tmp_path}/config.json", "--config.train.micro_batch_size=None"]
    )
    assert list(lines) == []
    assert changed.train.micro_batch_size is None


def test_a_field_that_moved_is_read_in_a_recorded_run(tmp_path):
    recorded = base.get_config().to_dict()
    del recorded["model"]["fused_attention"]
    recorded["train"]["fused_attention"] = True
    (tmp_path / "config.json").write_text(json.dumps(recorded))
    config, lines = overrides.read_valid(["launch.x", f"--config={tmp_path}/config.json"])
    assert list(lines) == []
    assert config.model.fused_attention is True


def test_a_run_that_goes_on_needs_nothing_to_start_from(tmp_path):
    arguments = ["launch.x", TINY, "--config.init_from=/nonexistent"]
    assert overrides.read_valid(arguments, tmp_path)[1]
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    assert overrides.read_valid(arguments, tmp_path)[1] == []


def test_a_trial_has_a_line_for_each_of_its_errors(tmp_path):
    trial = {"train.num_steps": 1e3, "model.image.num_heads": 0, "data.noun_kind": "word"}
    (tmp_path / "x.py").write_text(
        f"BASE = 'configs/tiny.py'\ndef get_sweep():\n    return [{trial!r}]\n"
    )
    (line,) = sweep_plan.check(sweep_plan.plan(str(tmp_path / "x.py"), "s"), tmp_path)
    for field in trial:
        assert f"config.{field}: " in line


def test_overrides_are_applied():
    config, _ = overrides.read(
        [
            "launch.train",
            "--workdir",
            "somewhere",
            TINY,
            "--config.train.batch_size=4",
            "--config.model.image.depths=(1, 2)",
            "--config.data.sources={'mine': {'kind': 'tfds', 'name': 'scenes'}}",
        ]
    )
    assert config.train.batch_size == 4
    assert config.model.image.depths == (1, 2)
    assert config.data.sources.mine.name == "scenes"


@pytest.mark.parametrize("form", [["--config=FILE"], ["--config", "FILE"], ["-config=FILE"]])
def test_all_ways_to_name_the_file_work(form):
    form = [part.replace("FILE", "configs/tiny.py") for part in form]
    assert overrides.read(["launch.train", *form])[0].train.num_steps == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config: missing"),
        (["--config=configs/nothing.py"], "--config=configs/nothing.py: no such file"),
    ],
)
def test_no_configuration_is_a_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        overrides.read(["launch.train", *arguments])


def test_a_typo_in_a_configuration_file_is_an_error(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs import base\n"
        "def get_config():\n"
        "    config = base.get_config()\n"
        "    config.train.num_epoch = 3.0\n"
        "    return config\n"
    )
    _, lines = overrides.read_valid(["launch.train", f"--config={file}"])
    assert list(lines) == [
        "config.train.num_epoch: no such field, the nearest is config.train.num_epochs"
    ]


def test_the_json_of_a_run_gives_the_same_configuration(tmp_path):
    sources = "--config.data.sources.pairs.pattern=shards/*.tar"
    config, _ = overrides.read(["launch.train", TINY, sources, "--config.seed=7"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    again, _ = overrides.read(["launch.train", f"--config={path}"])
    assert again.to_dict() == config.to_dict()
    changed, _ = overrides.read(
        ["launch.train", f"--config={path}", "--config.optimizer.warmup_steps=5"]
    )
    assert changed.optimizer.warmup_steps == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not JSON"),
        ("[" * 100_000, "RecursionError"),
        ('{"model": 5}', "model is 5, expected an object"),
        ('{"model": {"image": {"width": "x"}}}', "width"),
    ],
)
def test_a_foreign_json_is_one_sentence(tmp_path, content, message):
    path = tmp_path / "a b's.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        overrides.read(["", f"--config={path}"])
    assert str(error.value).startswith(str(path))
    assert "Traceback" not in str(error.value)
