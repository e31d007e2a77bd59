cd /tmp/wt/c5
export PYTHONPATH=/tmp/wt/c5:/tmp/wt/c5/backends OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1
export PATH=/work/main/.venv/bin:$PATH
