#!/usr/bin/env bash
# Trains, evaluates and segments in a few steps under each supported Python that is on this machine
# besides the one of .venv, each in a venv of its own: .venv-3.12, ...
set -euo pipefail
cd "$(dirname "$0")/.."

# Prints the path of a Python of the given version that can make a venv, if there is one.
find_python() {
  local python
  for python in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
    # pyenv's shims are found on PATH but fail unless their version is selected.
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
      command -v "$python"
      return
    fi
  done
}

smoke() {
  local version=$1 python=$2 folder
  folder=$(mktemp -d)
  export JAX_PLATFORMS=cpu XLA_FLAGS=--xla_backend_optimization_level=0
  make --no-print-directory "PYTHON=$python" "VENV=.venv-$version" ".venv-$version/demo.stamp"
  python=.venv-$version/bin/python
  "$python" -m launch.demo --workdir="$folder" --data=miniature --steps=2
  "$python" -m launch.segment --checkpoint="$folder/run" --labels="red circle, green square" \
    --output="$folder/segmented" "$folder/scenes.png"
  test -s "$folder/segmented/scenes_mask.png"
  rm -r "$folder"
}

used=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
for version in 3.11 3.12 3.13 3.14; do
  python=$(find_python "$version")
  if [ "$version" = "$used" ]; then
    continue
  elif [ -z "$python" ]; then
    echo "Python $version: not found"
  else
    time smoke "$version" "$python"
    echo "Python $version: passed"
  fi
done
