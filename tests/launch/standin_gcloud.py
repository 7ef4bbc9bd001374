#!/usr/bin/env python3
"""Stands in for gcloud: refuses what its reference doesn't know, records the rest, plays a TPU.

The flags are those of the reference of `gcloud compute tpus` (queued-resources create, delete,
list; tpu-vm ssh, scp) and `gcloud storage buckets create`. The folder STANDIN_GCLOUD holds what is
played: `calls.jsonl`, the state of each queued resource (NAME.state), what the run of the first
worker says (NAME.run), and a folder for each bucket.
"""

import json
import os
import re
import sys
from pathlib import Path

COMMON = {"--zone": True, "--project": True, "--quiet": False, "--format": True}
# Command -> (number of positional arguments, flags and whether they take a value, those needed).
COMMANDS = {
    "queued-resources create": (
        1,
        {
            "--accelerator-type": True, "--runtime-version": True, "--node-id": True,
            "--node-count": True, "--node-prefix": True, "--spot": False, "--reserved": False,
            "--best-effort": False, "--guaranteed": False, "--async": False, "--network": True,
            "--subnetwork": True, "--valid-until-duration": True, "--service-account": True,
            "--internal-ips": False, "--labels": True, "--metadata": True, "--type": True,
            "--topology": True, "--tags": True, "--data-disk": True,
        },
        {"--zone", "--accelerator-type", "--runtime-version"},
    ),
    "queued-resources delete": (1, {"--force": False, "--async": False}, {"--zone"}),
    "queued-resources list": (
        0,
        {"--filter": True, "--limit": True, "--sort-by": True, "--page-size": True},
        {"--zone"},
    ),
    "tpu-vm ssh": (
        1,
        {"--worker": True, "--command": True, "--internal-ip": False, "--batch-size": True,
         "--ssh-flag": True, "--tunnel-through-iap": False, "--output-directory": True},
        {"--zone", "--command"},
    ),
    "tpu-vm scp": (
        2,
        {"--worker": True, "--recurse": False, "--internal-ip": False, "--batch-size": True,
         "--compress": False, "--tunnel-through-iap": False, "--scp-flag": True},
        {"--zone"},
    ),
    "storage buckets create": (
        1,
        {"--location": True, "--default-storage-class": True, "--placement": True,
         "--uniform-bucket-level-access": False, "--soft-delete-duration": True},
        set(),
    ),
}  # fmt: skip


def check(argv):
    """Returns the command, its positional arguments and its flags, or ends with an error."""
    if argv[:2] == ["compute", "tpus"]:
        argv = argv[2:]
    command = " ".join(argv[:2] if argv[0] != "storage" else argv[:3])
    if command not in COMMANDS:
        sys.exit(f"gcloud: unknown command {command!r}")
    count, flags, needed = COMMANDS[command]
    flags = flags | COMMON
    positional, given = [], {}
    for argument in argv[len(command.split()) :]:
        if not argument.startswith("--"):
            positional.append(argument)
            continue
        name, equals, value = argument.partition("=")
        if name not in flags:
            sys.exit(f"gcloud {command}: unrecognized flag {name}")
        if flags[name] != bool(equals and value):
            sys.exit(f"gcloud {command}: wrong value in {argument!r}")
        given[name] = value
    if len(positional) != count:
        sys.exit(f"gcloud {command}: {positional} found, expected {count} arguments")
    if missing := needed - given.keys():
        sys.exit(f"gcloud {command}: {sorted(missing)} missing")
    return command, positional, given


def create(folder, name, flags):
    if ("--node-id" in flags) == ("--node-prefix" in flags and "--node-count" in flags):
        sys.exit("gcloud: expected --node-id, or --node-prefix and --node-count")
    state = folder / f"{name}.state"
    if state.exists():
        sys.exit(f"gcloud: ALREADY_EXISTS: {name}")
    state.write_text("WAITING_FOR_RESOURCES")
    (folder / f"{name}.run").unlink(missing_ok=True)  # a new machine knows nothing of a run


def delete(folder, name, flags):
    state = folder / f"{name}.state"
    if not state.exists():
        sys.exit(f"gcloud: NOT_FOUND: {name}")
    if state.read_text() != "FAILED" and "--force" not in flags:
        sys.exit("gcloud: FAILED_PRECONDITION: the node exists, expected --force")
    if "--quiet" not in flags:
        sys.exit("gcloud: would ask")
    state.unlink()


def show(folder, flags):
    wanted = re.fullmatch(r"name~/([a-z0-9-]+)\$", flags["--filter"])[1]
    state = folder / f"{wanted}.state"
    if not state.exists():
        return
    print(state.read_text())
    following = {"WAITING_FOR_RESOURCES": "PROVISIONING", "PROVISIONING": "ACTIVE"}
    state.write_text(following.get(state.read_text(), state.read_text()))


def reach(folder, node, flags):
    """Does what the workers would, as far as a script can see it."""
    name = re.sub(r"-\d+$", "", node)
    if (folder / f"{name}.state").read_text() != "ACTIVE":
        sys.exit(f"gcloud: {node} is not READY")
    run, command = folder / f"{name}.run", flags.get("--command", "")
    if "launch.train" in command and flags["--worker"] == "all":
        run.write_text("running")
    elif "train.exit" in command:
        print(run.read_text() if run.exists() else "absent")


def main():
    folder = Path(os.environ["STANDIN_GCLOUD"])
    command, positional, flags = check(sys.argv[1:])
    with (folder / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps([command, positional, flags]) + "\n")
    match command:
        case "queued-resources create":
            create(folder, positional[0], flags)
        case "queued-resources delete":
            delete(folder, positional[0], flags)
        case "queued-resources list":
            show(folder, flags)
        case "storage buckets create":
            (folder / positional[0].removeprefix("gs://")).mkdir()
        case _:
            reach(folder, positional[-1].partition(":")[0], flags)


if __name__ == "__main__":
    main()
