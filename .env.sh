cd /tmp/wt/c1
export PYTHONPATH=/tmp/wt/c1:/tmp/wt/c1/backends OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1
export PATH=/work/main/.venv/bin:$PATH
