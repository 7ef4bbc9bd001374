#!/usr/bin/env bash
# Trains on a Cloud TPU that a queued resource brings (docs/launch_tpu.md):
#
#   launch/tpu_vm.sh create NAME                 asks for the TPU and waits until it is there
#   launch/tpu_vm.sh run NAME ARGUMENT...        starts launch.train with these on all workers
#   launch/tpu_vm.sh status NAME                 the TPU's state, the run's state, the log's end
#   launch/tpu_vm.sh resume NAME ARGUMENT...     brings back what was preempted, starts what stopped
#   launch/tpu_vm.sh delete NAME                 gives the TPU back
#
# resume does nothing where the run goes on. With WATCH=SECONDS it looks again so often until all
# steps are done. Exit codes: 0 fine; 1 or 2 as launch.train; 64 wrong use; else those of gcloud.
#
#   ZONE     of the TPU, e.g. us-central2-b               (needed)
#   TYPE     accelerator type, e.g. v5litepod-16          (needed by create and resume)
#   RUNTIME  TPU software, e.g. v2-alpha-tpuv5-lite       (needed by create and resume)
#   PROJECT  Google Cloud project                         (gcloud's own by default)
#   SPOT=1   cheaper, and preempted when others pay more
#   SLICES   number of slices, joined by the data centre's network (1)
#   SETUP    a command for every worker before anything else, e.g. one that mounts the workdir
set -euo pipefail

poll_seconds=${POLL_SECONDS:-30}

main() {
    local command=${1:-} name=${2:-}
    case $command in
    create | run | status | resume | delete) ;;
    *) fail "'$command' found, expected create, run, status, resume or delete" ;;
    esac
    [[ $name =~ ^[a-z][a-z0-9-]*$ ]] || fail "NAME: '$name' found, expected lower case, digits, -"
    shift 2
    need ZONE
    location=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"})
    "$command" "$name" "$@"
}

create() {
    need TYPE
    need RUNTIME
    local nodes=(--node-id="$1")
    if ((${SLICES:-1} > 1)); then
        nodes=(--node-count="$SLICES" --node-prefix="$1")
    fi
    gcloud compute tpus queued-resources create "$1" "${location[@]}" "${nodes[@]}" \
        --accelerator-type="$TYPE" --runtime-version="$RUNTIME" ${SPOT:+--spot}
    wait_until_active "$1"
}

run() {
    local name=$1 archive node
    shift
    (($# > 0)) || fail "run: no arguments found, expected those of launch.train"
    archive=$(mktemp --suffix=.tar.gz)
    git archive --format=tar.gz --output="$archive" HEAD
    for node in $(nodes_of "$name"); do
        gcloud compute tpus tpu-vm scp "$archive" "$node:groupvit.tar.gz" "${location[@]}" \
            --worker=all
    done
    rm "$archive"
    on_workers "$name" all "$(install_command)"
    on_workers "$name" all "$(start_command "$@")"
}

status() {
    local state
    state=$(state_of "$1")
    echo "TPU: $state"
    [[ $state == ACTIVE ]] || return 0
    echo "run: $(run_state "$1")"
    on_workers "$1" 0 "tail -n 20 groupvit/train.log 2>/dev/null || true"
}

resume() {
    local name=$1 state run_ended
    shift
    (($# > 0)) || fail "resume: no arguments found, expected those of launch.train"
    while true; do
        state=$(state_of "$name")
        case $state in
        ACTIVE) ;;
        ABSENT)
            create "$name"
            ;;
        SUSPENDING | SUSPENDED | FAILED)
            echo "the TPU is $state; asking for another"
            delete "$name"
            create "$name"
            ;;
        *) wait_until_active "$name" ;;
        esac
        run_ended=$(run_state "$name")
        case $run_ended in
        running) echo "the run goes on" ;;
        0)
            echo "all steps are done"
            return 0
            ;;
        1 | 2)
            status "$name"
            echo "launch.train ended with $run_ended, which a restart doesn't mend" >&2
            return "$run_ended"
            ;;
        *) # absent; 143, saved after a SIGTERM; 75, another process was lost; killed
            echo "the run is ${run_ended}; starting it"
            run "$name" "$@"
            ;;
        esac
        [[ -n ${WATCH:-} ]] || return 0
        sleep "$WATCH"
    done
}

delete() {
    gcloud compute tpus queued-resources delete "$1" "${location[@]}" --force --quiet
}

# ABSENT where there is no such queued resource; an error of gcloud ends the script.
state_of() {
    local state
    state=$(gcloud compute tpus queued-resources list "${location[@]}" \
        --filter="name~/$1\$" --format="value(state.state)")
    echo "${state:-ABSENT}"
}

wait_until_active() {
    local state
    while true; do
        state=$(state_of "$1")
        case $state in
        ACTIVE) return 0 ;;
        ABSENT | FAILED | SUSPENDING | SUSPENDED | DELETING) fail "$1: the TPU is $state" ;;
        esac
        echo "$1: the TPU is $state"
        sleep "$poll_seconds"
    done
}

nodes_of() {
    local i
    if ((${SLICES:-1} == 1)); then
        echo "$1"
        return
    fi
    for ((i = 0; i < SLICES; i++)); do
        echo "$1-$i"
    done
}

# on_workers NAME all|0 COMMAND: on all workers of all slices, or on the first of the first.
on_workers() {
    local node pids=()
    for node in $(nodes_of "$1"); do
        gcloud compute tpus tpu-vm ssh "$node" "${location[@]}" --worker="$2" --command="$3" &
        pids+=($!)
        [[ $2 == all ]] || break
    done
    for node in "${pids[@]}"; do
        wait "$node"
    done
}

# running, absent, or the exit code of launch.train on the first worker.
run_state() {
    on_workers "$1" 0 "if [ -f groupvit/train.exit ]; then cat groupvit/train.exit; \
elif grep -qs launch.train /proc/\$(cat groupvit/train.pid 2>/dev/null)/cmdline; \
then echo running; else echo absent; fi"
}

install_command() {
    cat <<'REMOTE'
set -e
mkdir -p groupvit
tar -xzf groupvit.tar.gz -C groupvit
cd groupvit
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --allow-existing --python 3.12 .venv
python3 -m uv pip install --quiet --python .venv/bin/python -r requirements.txt -e '.[tpu,gcs]'
REMOTE
}

# What outlives the connection, and leaves its exit code. What an earlier run left is ended first.
start_command() {
    local arguments
    arguments=$(printf '%q ' "$@")
    cat <<REMOTE
set -e
${SETUP:-true}
cd groupvit
earlier=\$(cat train.pid 2>/dev/null || true)
if grep -qs launch.train "/proc/\$earlier/cmdline"; then
    kill "\$earlier"
    while [ -d "/proc/\$earlier" ]; do sleep 1; done
fi
rm -f train.exit
setsid nohup bash -c '
.venv/bin/python -m launch.train --distributed=auto "\$@" >>train.log 2>&1 &
echo \$! >train.pid
code=0
wait \$! || code=\$?
echo \$code >train.exit
' train $arguments </dev/null >/dev/null 2>&1 &
REMOTE
}

need() {
    [[ -n ${!1:-} ]] || fail "$1: not set, see the head of this file"
}

fail() {
    echo "tpu_vm.sh: $1" >&2
    exit 64
}

main "$@"
