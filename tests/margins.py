"""How near numeric comparisons come to their bounds: python -m pytest -p tests.margins ...

A comparison that takes more than a third of what it is allowed passes here by luck: another
processor, another instruction set or another number of threads sums in another order.
"""

from collections.abc import Generator
from unittest import mock

import numpy as np
import pytest

LARGEST = 1 / 3


def share_of_bound(actual, desired, rtol: float, atol: float) -> float:
    """Returns the largest difference as a share of what `np.testing.assert_allclose` allows."""
    actual, desired = np.asarray(actual, np.float64), np.asarray(desired, np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.abs(actual - desired)
    allowed = np.broadcast_to(atol + rtol * np.abs(desired), difference.shape)
    differs = (difference > 0) & (allowed > 0)
    return float(np.max(difference[differs] / allowed[differs], initial=0.0))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    compare, largest = np.testing.assert_allclose, 0.0

    def recorded(actual, desired, rtol=1e-7, atol=0, *arguments, **options):
        nonlocal largest
        compare(actual, desired, rtol, atol, *arguments, **options)
        largest = max(largest, share_of_bound(actual, desired, rtol, atol))

    with mock.patch.object(np.testing, "assert_allclose", recorded):
        try:
            yield
        finally:
            item.user_properties.append(("share of bound", largest))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    shares = {
        report.nodeid: dict(report.user_properties).get("share of bound", 0.0)
        for report in terminalreporter.getreports("passed")
    }
    ranked = sorted(((share, name) for name, share in shares.items()), reverse=True)
    near = [entry for entry in ranked if entry[0] > LARGEST]
    terminalreporter.section(
        f"{len(near)} of {len(shares)} tests take over {LARGEST:.2f} of a bound"
    )
    for share, name in near or ranked[:1]:
        terminalreporter.write_line(f"{share:.2f} {name}")
