#!/bin/sh
# All that is to be measured on a GPU, in one run: writes benchmarks/results/gpu.md and gpu.json.
#
#   benchmarks/gpu.sh            on the machine's CUDA device; without one each row says "not measured"
#   benchmarks/gpu.sh --quick    tiny sizes on any device, printed only: to see that everything runs
#
# PYTHON names the interpreter; the default is that of `make test`. Takes about half an hour on one H100.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
export XLA_PYTHON_CLIENT_PREALLOCATE=false
export PYTHONPATH="$PWD:$PWD/backends${PYTHONPATH:+:$PYTHONPATH}"
if [ "${1:-}" = --quick ]; then
    exec "$python" -m benchmarks.gpu --quick
fi
exec "$python" -m benchmarks gpu
