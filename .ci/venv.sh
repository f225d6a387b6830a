#!/bin/sh
# .ci/venv.sh run|test [PYTHON]
# Makes .venv what this checkout needs to run, or to be tested; does nothing where it is that already. `make` calls it.
#
# What .venv is made of is written in it: pyvenv.cfg (by `python -m venv`: the version of Python and the folder) and
# .installed, .installed-test (by this script: the checksum of the files that say what is installed).
set -eu
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$@" >&2; }
stop() { say "$@"; exit 2; }

# Sets, of a Python: version; executable, the one behind a shim or another virtual environment, empty where the Python
# cannot make a virtual environment (Debian has its venv and ensurepip in a package of their own); fault, empty where it
# runs and is of a version that is supported.
PROBE='
import sys; sys.stdout.write("%d.%d.%d " % sys.version_info[:3])
import venv, ensurepip; print(sys._base_executable)'
examine() {
  answer=$("$1" -c "$PROBE" 2> /dev/null) || true
  version=${answer%% *} executable=${answer#* } fault=
  case $version in
    3.11.* | 3.12.* | 3.13.*) ;;
    "") fault="does not run" ;;
    *) fault="is $version" ;;
  esac
}

# The same of a Python that is to make a virtual environment.
examine_maker() {
  examine "$1"
  if [ -z "$fault$executable" ]; then
    fault="has no ensurepip (Debian, Ubuntu: apt install python${version%.*}-venv)"
  fi
}

# The first Python on the PATH that can be used.
choose() {
  passed_over=
  for name in python3 python3.13 python3.12 python3.11; do
    command -v "$name" > /dev/null || continue
    examine_maker "$name"
    [ "$fault" ] || return 0
    passed_over="$passed_over; $name $fault"
  done
  stop "eqreg needs Python 3.11, 3.12 or 3.13 with venv and ensurepip${passed_over:+, but ${passed_over#; }}." \
    "Install one of them, or name one that is not on the PATH: make run PYTHON=/path/to/python3.12"
}

# Whether .venv is something that is not made here, and must not be deleted.
is_foreign() {
  [ ! -L .venv ] || return 0
  [ -e .venv ] || return 1
  if [ -e .venv/pyvenv.cfg ]; then
    grep -qE '^(uv|virtualenv) *=' .venv/pyvenv.cfg
  else
    [ "$(ls -A .venv)" ]
  fi
}

# pip writes INSTALLER last: a package without it was broken off.
is_whole() {
  for package in .venv/lib/python*/site-packages/$1; do
    [ -e "$package/INSTALLER" ] || return 1
  done
}

# Prints why .venv has to be made anew; nothing where it can be kept.
why_anew() {
  if [ ! -e .venv/pyvenv.cfg ]; then echo "there is none"; return; fi
  examine .venv/bin/python
  recorded=$(sed -n 's/^version *= *//p' .venv/pyvenv.cfg)
  made_in=$(sed -n 's/^command *=.* -m venv[^/]*//p' .venv/pyvenv.cfg)
  if [ "$fault" ]; then echo "its Python $fault"
  elif [ "${recorded%.*}" != "${version%.*}" ]; then echo "its Python was $recorded and is $version"
  elif [ "$wanted" ] && [ "$wanted" != "$version" ]; then echo "it has Python $version, and PYTHON is $wanted"
  elif [ ! "$made_in" -ef .venv ]; then echo "it was made in another folder"
  elif ! is_whole 'pip-*.dist-info'; then echo "it is half made"
  elif ! is_current "$stamp" && ! is_whole '*.dist-info'; then echo "an installation into it was broken off"
  fi
}

is_current() { [ "$(cat "$1" 2> /dev/null)" = "$checksum" ]; }

case $PWD in *%*)
  stop "The path of this folder has a '%', below which MLflow cannot make its database: rename the folder, or move it." ;;
esac
case $1 in
  run) stamp=.venv/.installed extra= ;;
  test) stamp=.venv/.installed-test extra='[test]' ;;
esac
checksum=$(cat pyproject.toml constraints.txt | cksum)
wanted=
if [ "${2-}" ]; then
  examine_maker "$2"
  [ -z "$fault" ] || stop "PYTHON=$2 $fault; eqreg needs Python 3.11, 3.12 or 3.13 with venv and ensurepip."
  wanted=$version maker=$executable
fi
if is_foreign; then
  stop ".venv is no virtual environment that make has made: move it away, or delete it yourself."
fi

reason=$(why_anew)
if [ "$reason" ]; then
  if [ -z "$wanted" ]; then
    choose
    wanted=$version maker=$executable
  fi
  say "making .venv with Python $wanted: $reason"
  # pyvenv.cfg is there from the first to the last: wherever this is stopped, .venv is known for a virtual environment.
  mkdir -p .venv
  : >> .venv/pyvenv.cfg
  find .venv -mindepth 1 ! -path .venv/pyvenv.cfg -delete
  "$maker" -m venv .venv
fi

if ! is_current "$stamp"; then
  say "installing into .venv: some minutes the first time"
  could_run=
  ! is_current .venv/.installed || could_run=yes
  rm -f .venv/.installed .venv/.installed-test  # what is broken off is done again
  if ! .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".$extra"; then
    [ -z "$could_run" ] || echo "$checksum" > .venv/.installed  # only the test tools failed
    exit 2
  fi
  echo "$checksum" > .venv/.installed
  [ -z "$extra" ] || echo "$checksum" > "$stamp"
fi
