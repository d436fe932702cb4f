#!/usr/bin/env bash
# Run one experiment as a SLURM job that resumes after preemption. Submit it from the checkout,
# after launch/setup.sh:
#   sbatch launch/slurm.sh --config=configs/resid_mlp.py:2 --workdir=/scratch/me/resid2
# On several GPUs or nodes, with one task for each GPU and the workdir on a shared disk:
#   sbatch --nodes=2 --gpus=8 --gpus-per-node=4 --ntasks-per-node=4 launch/slurm.sh \
#     --config=configs/language_model.py:4 --config.mesh=1,4,2 --workdir=/shared/me/lm4
#SBATCH --job-name=apd
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-.}" || exit 1
if ! [ -x .venv/bin/python ]; then
  echo "slurm.sh: no .venv in $PWD: submit from the checkout, after bash launch/setup.sh." >&2
  exit 1
fi
trap : TERM  # the run gets the signal too; the commands after it must still be executed
several=()
if [ "${SLURM_NTASKS:-1}" -gt 1 ]; then
  several=(--distributed)  # JAX finds the coordinator and the tasks in SLURM's variables
fi
# A minute after the first task has ended, SLURM ends those that still wait for it.
srun --wait=60 .venv/bin/python -m apd_jax.main "${several[@]}" "$@"
status=$?
if [ "$status" = 134 ] || [ "$status" = 137 ]; then
  echo "slurm.sh: a task was lost, and JAX ended the others. Submit the job again to resume." >&2
fi
# Status 75: the run was asked to stop and has saved; rerunning the command resumes it. A cancelled
# job is no longer in state RUNNING, and stays cancelled.
if [ "$status" = 75 ] &&
  [ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" = RUNNING ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
