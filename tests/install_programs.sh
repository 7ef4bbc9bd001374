#!/usr/bin/env bash
# Installs the programs that tests use, Slurm and a browser, as root on Debian or Ubuntu.
set -euo pipefail
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "Slurm and Chromium are not installed: that takes root on Debian or Ubuntu"
  exit 0
fi
apt-get update -qq
# No daemon starts as a service: they lack a configuration, and the tests start their own.
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
  slurm-wlm munge chromium >/dev/null
