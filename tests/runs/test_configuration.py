import pytest

from configs import base, from_json
from groupvit_jax.runs import configuration


def test_the_written_configuration_reads_back_the_same(tmp_path):
    config = base.get_config()
    configuration.write_config(config.to_dict(), tmp_path)
    read = configuration.config_from_json(tmp_path / "config.json")
    assert read.to_dict() == config.to_dict()


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_file_that_is_no_configuration_is_a_clear_error(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"config\.json: .*expected a"):
        configuration.config_from_json(path)


def test_another_model_is_refused_only_where_there_is_a_checkpoint(tmp_path):
    config = base.get_config()
    configuration.write_config(config.to_dict(), tmp_path)
    config.model.image.num_heads = 8
    with pytest.raises(ValueError, match=r"another model \(config.model.image.num_heads: 6 -> 8\)"):
        configuration.check_same_run(config, tmp_path, resuming=True)
    configuration.check_same_run(config, tmp_path, resuming=False)


def test_other_differences_are_logged_and_the_run_goes_on(tmp_path, caplog):
    config = base.get_config()
    configuration.write_config(config.to_dict(), tmp_path)
    config.optimizer.weight_decay = 0.1
    configuration.check_same_run(config, tmp_path, resuming=True)
    assert [record.message for record in caplog.records] == [
        f"the configuration of {tmp_path} changes: config.optimizer.weight_decay: 0.05 -> 0.1"
    ]


def test_fields_that_came_after_the_run_began_are_no_other_model(tmp_path):
    recorded = base.get_config()
    del recorded.model.text["kind"]
    configuration.write_config(recorded.to_dict(), tmp_path)
    configuration.check_same_run(base.get_config(), tmp_path, resuming=True)


def test_a_record_older_than_a_choice_says_what_was_done_then(tmp_path):
    recorded = base.get_config().to_dict()
    for field in ("scaled_rates", "update_lag"):
        del recorded["optimizer"][field]
    recorded["data"]["noun_kind"] = "words"
    configuration.write_config(recorded, tmp_path)
    again = from_json.get_config(str(tmp_path / "config.json"))
    resumed = configuration.keep_recorded(base.get_config(), tmp_path)
    for config in (again, resumed):
        optimizer = config.optimizer
        assert (optimizer.scaled_rates, optimizer.update_lag) == ("peak", 0)
        assert config.data.noun_kind == "words"


def test_a_resumed_run_keeps_how_it_began_and_says_so(tmp_path, caplog):
    config = base.get_config()
    config.optimizer.update_lag = 0
    configuration.write_config(config.to_dict(), tmp_path)
    changed = base.get_config()
    changed.optimizer.weight_decay = 0.1  # not of these fields
    kept = configuration.keep_recorded(changed, tmp_path)
    assert (kept.optimizer.update_lag, kept.optimizer.weight_decay) == (0, 0.1)
    assert changed.optimizer.update_lag == 1
    assert "config.optimizer.update_lag: 0, with which the run of" in caplog.text
    assert configuration.keep_recorded(changed, tmp_path / "fresh") is changed
