"""A short, seeded part of `make fuzz`."""

import sys

import pytest

pytest.importorskip("hypothesis")

from tests.fuzz.kinds import KINDS
from tests.fuzz.runner import run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="watches memory in /proc")


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_has_an_outcome(kind):
    outcomes = run(kind, 25, 0)
    assert sum(outcomes.values()) == 25
    assert not [outcome for outcome in outcomes if outcome.startswith(("RAW", "OVER"))]
    assert len(outcomes) > 1, "some are usable and some aren't"
