"""Names of the files and folders in a run's folder (its workdir) and in a sweep's.

    WORKDIR/config.json     the resolved configuration
            starts.jsonl    one line for each start: command, versions, devices, git state
            REPEAT.txt      the command that repeats the run
            metrics.jsonl   one line for each step with metrics
            checkpoints/    one folder for each saved step, see `checkpoints`
            profile/        traces, with `config.profile_steps`
            run-1.lock      which process trains here, see `lock`
            wandb_id        the run's id at Weights & Biases, with `config.wandb_project`

A sweep's folder has `sweep.json` and a workdir for each trial, which also holds `trial.json`,
`log.txt`, `.lock` and, for TensorBoard's HPARAMS page, an event file of the trial's settings.
"""

CONFIG_FILE = "config.json"
STARTS_FILE = "starts.jsonl"
REPEAT_FILE = "REPEAT.txt"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
PROFILE = "profile"
WANDB_ID_FILE = "wandb_id"

SWEEP_FILE = "sweep.json"
TRIAL_FILE = "trial.json"
TRIAL_LOG_FILE = "log.txt"
TRIAL_LOCK_FILE = ".lock"
# TensorBoard reads event files only, which it knows by the beginning of their names.
TRIAL_SETTINGS_FILE = "events.out.tfevents.0.hparams"
