import threading

from groupvit_jax.train.progress import telling


def test_what_takes_long_is_told_with_its_time_so_far(caplog):
    caplog.set_level("INFO")
    told_again = threading.Event()
    caplog.handler.addFilter(
        lambda record: told_again.set() or True if "so far" in record.getMessage() else True
    )
    with telling("compiling the step", every_seconds=0.01):
        assert told_again.wait(10)
    assert caplog.messages[0] == "compiling the step ..."
    assert caplog.messages[1] == "compiling the step: 0 s so far"
