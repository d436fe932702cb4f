#!/usr/bin/env bash
# One experiment as a SLURM job that goes on after preemption:
#   sbatch launch/slurm.sh --config=configs/resid_mlp.py:2 --workdir=/scratch/me/resid2
#SBATCH --job-name=apd
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
srun .venv/bin/python -m apd_jax.main "$@"
status=$?
# 75: the run was asked to stop and has saved; the same command goes on from there.
if [ "$status" = 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
