#!/bin/sh
# sh pipeline/eqreg.sh ARGUMENTS
# Runs `eqreg ARGUMENTS` with the code of this folder. The stages of dvc.yaml start with it, also where the PATH has
# another Python than eqreg's, or none. The first Python that eqreg is installed in is taken, of: EQREG_PYTHON, the
# PATH's (an activated environment, `make`), .venv here, .venv of the checkout that DVC copied this folder from, and
# .venv of the main checkout of a git worktree.
set -eu

# -P: not from this folder, where pip leaves eqreg.egg-info.
INSTALLED='from importlib.metadata import version; version("eqreg"), version("ray")'

run_with() {
  python=$1
  shift
  if "$python" -P -c "$INSTALLED" > /dev/null 2>&1; then exec "$python" -m pipeline.cli "$@"; fi
}

if [ "${EQREG_PYTHON:-}" ]; then exec "$EQREG_PYTHON" -m pipeline.cli "$@"; fi
copied_from=${DVC_ROOT:-.}  # DVC sets it for every stage
run_with python "$@"
run_with python3 "$@"
run_with .venv/bin/python "$@"
run_with "$copied_from/.venv/bin/python" "$@"
if repository=$(git -C "$copied_from" rev-parse --path-format=absolute --git-common-dir 2> /dev/null); then
  run_with "${repository%/.git}/$(git -C "$copied_from" rev-parse --show-prefix).venv/bin/python" "$@"
fi
for name in python3.13 python3.12 python3.11; do
  run_with "$name" "$@"
done
echo "error: eqreg is installed neither in the PATH's Python nor in .venv: run 'make run', which makes .venv, or" \
  "activate the environment that it is installed in" >&2
exit 2
