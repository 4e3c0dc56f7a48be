#!/usr/bin/env bash
# Tests that load, run and write models of transformers, by another version of it than the one that is installed.
#
#   tools/test_transformers.sh VERSION    a minor version, such as 5.12
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1:?usage: tools/test_transformers.sh VERSION}
folder=build/transformers/$version
if [ ! -e "$folder/.ready" ]; then
  rm -rf "$folder"
  python -m pip --disable-pip-version-check install -q --target "$folder" "transformers==$version.*"
  touch "$folder/.ready"
fi
tests=()
for name in calibrate export gguf kinds kinds_run kv_cache ptq runs schedule stream streamed verify weight_cache; do
  tests+=("tests/python/test_$name.py")
done
PYTHONPATH="$PWD/$folder${PYTHONPATH:+:$PYTHONPATH}" python -m pytest "${tests[@]}" "${@:2}"
