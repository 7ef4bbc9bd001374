#!/usr/bin/env bash
# Installs what tests/slurm needs on Debian or Ubuntu; to be run as root, once for a machine.
set -euo pipefail
apt-get update -qq
# As services they would want a configuration; the tests start them by themselves.
DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurm-wlm munge
