import threading

import pytest

from groupvit_jax.serve.worker import Worker
from tests.waiting import PATIENCE, wait_until


def test_results_and_errors_of_the_work_are_passed_on():
    worker = Worker(float(PATIENCE), 2)
    assert worker.run(lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(ZeroDivisionError):
        worker.run(lambda: 1 / 0)
    with pytest.raises(TimeoutError, match="of the work"):
        worker.run(_late)
    worker.close()


def _late():
    raise TimeoutError("of the work")


def test_one_thing_at_a_time():
    worker, running, most = Worker(float(PATIENCE), 8), [], []

    def work():
        running.append(1)
        most.append(len(running))
        running.pop()

    threads = [threading.Thread(target=worker.run, args=(work,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_too_many_waiting_is_told_at_once():
    worker, gate = Worker(float(PATIENCE), 1), threading.Event()
    first = threading.Thread(target=worker.run, args=(gate.wait,))
    first.start()
    wait_until(lambda: worker._executor._work_queue.empty())
    with pytest.raises(ValueError, match="the page is busy: 1 photos are waiting"):
        worker.run(print)
    gate.set()
    first.join()
    # The place is free again.
    assert worker.run(lambda: "done") == "done"


def test_the_time_is_limited_and_the_next_visitor_is_served():
    worker, gate = Worker(0.05, 2), threading.Event()
    with pytest.raises(ValueError, match=r"no answer within 0\.05 seconds"):
        worker.run(gate.wait)
    gate.set()
    worker._seconds = PATIENCE
    assert worker.run(lambda: "done") == "done"
