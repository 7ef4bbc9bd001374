"""Lists skipped tests by reason at the end of a run, and fails a run that may not skip any.

With GROUPVIT_TEST_NO_SKIPS=1, as in `.ci/run`, a skipped test is a failure unless `ALLOWED` has its
reason: a test that nobody runs protects nothing.
"""

import collections
import os
import re
import shutil

import pytest

NO_SKIPS = "GROUPVIT_TEST_NO_SKIPS"
# Programs come from Debian's packages, which only root can install.
_CAN_INSTALL = shutil.which("apt-get") is not None and os.geteuid() == 0
# Reasons that `NO_SKIPS` accepts, and why.
ALLOWED = {"the CUDA plugin": "its wheels take several GB, for a single test"}
if not _CAN_INSTALL:
    ALLOWED["Slurm is not tested|no browser"] = "only root can install them"
_REMEDY = """\
`make extras` installs PyTorch, TensorFlow, libtpu and timm; as root on Debian or Ubuntu also Slurm
and Chromium. Tests of Linux or glibc run nowhere else."""


def skipped_by_reason(reports: list[pytest.TestReport | pytest.CollectReport]) -> dict[str, set]:
    """Returns the ids of skipped tests, or of files skipped as a whole, by reason."""
    found = collections.defaultdict(set)
    for report in reports:
        _, _, reason = report.longrepr
        # Every xdist worker reports a file that is skipped as a whole; the set counts it once.
        found[reason.removeprefix("Skipped: ")].add(report.nodeid)
    return dict(sorted(found.items()))


def forbidden(reasons: list[str]) -> list[str]:
    """Returns those of `reasons` for which no test may be skipped in this run."""
    if os.environ.get(NO_SKIPS, "0") in ("", "0"):
        return []
    return [r for r in reasons if not any(re.search(allowed, r) for allowed in ALLOWED)]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """Fails the run if a test was skipped that must not be."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    # Workers of pytest-xdist have no reporter of their own; the controller sees all reports.
    if reporter is None or hasattr(session.config, "workerinput"):
        return
    skipped = skipped_by_reason(reporter.stats.get("skipped", []))
    if session.exitstatus == pytest.ExitCode.OK and forbidden(list(skipped)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    """Prints the reasons for skipped tests, how many each skips, and how to have them all run."""
    skipped = skipped_by_reason(terminalreporter.stats.get("skipped", []))
    if not skipped:
        return
    terminalreporter.section("skipped tests")
    for reason, tests in skipped.items():
        terminalreporter.line(f"{len(tests):5}  {reason}")
    terminalreporter.line(_REMEDY)
    for reason in forbidden(list(skipped)):
        for test in sorted(skipped[reason]):
            terminalreporter.line(f"ERROR {test}: {NO_SKIPS} is set and the reason not allowed")
