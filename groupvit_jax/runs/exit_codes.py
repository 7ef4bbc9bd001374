"""Exit codes of the commands: schedulers and sweeps decide by them whether to start again."""

DONE = 0
FAILED = 1
# Something is wrong with flags, configuration, workdir or data: starting again can't help.
BAD_INPUT = 2
# EX_TEMPFAIL: another process of the run has died. The same command, started on all hosts, resumes.
LOST = 75
# 128 + SIGTERM, as a shell reports it: the state is saved and the same command resumes.
STOPPED = 143
