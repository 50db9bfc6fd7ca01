# Makes .venv in the checkout. Sourced by the other scripts, from the top of the checkout:
#
#   make_environment [EXTRA]      EXTRA is empty (what users need) or "dev"
#
# Nothing is done, and no network is needed, when the environment already fits pyproject.toml.
# shellcheck shell=bash

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 2; }
is_root() { [ "$(id -u)" -eq 0 ]; }
has_apt() { command -v apt-get >/dev/null 2>&1; }

apt_install() {
  DEBIAN_FRONTEND=noninteractive apt-get -qq update
  # What dpkg unpacks is of no interest; what goes wrong comes on stderr.
  DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "$@" </dev/null >/dev/null
}

# The first interpreter that really runs and is new enough: PFS_PYTHON, python3, then by version.
# (A version manager's shim may be on PATH and still refuse to run.)
find_python() {
  local candidate
  for candidate in ${PFS_PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  fail "Python 3.11 or newer is needed; set PFS_PYTHON to one, or install it (apt-get install python3)"
}

# Debian packages venv apart from python3, so a fresh machine may lack it.
create_venv() {
  local python=$1 venv=$2 package
  "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || {
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if is_root && has_apt; then
      say "installing $package, which this machine lacks"
      apt_install "$package" || apt_install python3-venv
    else
      fail "this machine's Python lacks its venv module; type: sudo apt-get install $package"
    fi
  }
  "$python" -m venv "$venv"
}

# What was built for one interpreter does not run in another, nor does venv replace it.
discard_foreign_venv() {
  local python=$1 venv=$2 whose='import sys; print(sys.version, sys.base_prefix)'
  [ ! -e "$venv/bin" ] || [ "$("$venv/bin/python" -c "$whose" 2>&1)" = "$("$python" -c "$whose")" ] ||
    find "$venv" -mindepth 1 -maxdepth 1 ! -name .lock -exec rm -rf {} +
}

make_environment() {
  local extra=${1:-} venv=${PFS_VENV:-.venv} python wanted stamp
  python=$(find_python) || exit $?
  # The stamp names all that the environment was made from, the folder included: a venv does
  # not survive being moved.
  wanted=$({ cat pyproject.toml; pwd -P; "$python" -c 'import sys; print(sys.version)'; } | sha256sum)
  mkdir -p "$venv"
  exec 9>"$venv/.lock"
  flock 9
  for stamp in "$venv/.made-dev" "$venv/.made-${extra:-base}"; do
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
      exec 9>&-
      return
    fi
  done
  say "making the Python environment in $venv (needed once, and after changes to pyproject.toml)"
  rm -f "$venv"/.made-*
  discard_foreign_venv "$python" "$venv"
  create_venv "$python" "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".${extra:+[$extra]}" ||
    fail "the installation did not finish; see above, and check the network"
  printf '%s\n' "$wanted" >"$venv/.made-${extra:-base}"
  exec 9>&-
}
