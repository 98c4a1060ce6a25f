#!/usr/bin/env bash
# Train on several nodes of a Slurm cluster:  sbatch scripts/slurm.sh config/gpt2_124m.toml --out_dir=out/gpt2
# All words behind the script go to train.py. out_dir and the dataset must lie where every node sees them.
#SBATCH --job-name=lathe
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# One torchrun a node; rank 0 lives on the first. --init_from=auto makes the same command start, go on after a fault,
# and go on after Slurm's time limit. The variable lets torchrun's restarts find each other (see the README).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# How long torchrun lets its ranks save after USR1, within the three minutes below; torch 2.11 waits 30 s whatever is said.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
PYTHON="${PYTHON:-.venv/bin/python}"

# Three minutes before the time limit Slurm sends USR1 to this shell: pass it on, so that all ranks save and stop.
# torchrun has to be told that it may hand the signal to its ranks; without that it would die and leave them behind.
srun --kill-on-bad-exit=1 "$PYTHON" -m torch.distributed.run \
    --nnodes="$SLURM_NNODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-gpu}" --max-restarts=3 \
    --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$HEAD:29500" \
    --signals-to-handle=SIGTERM,SIGINT,SIGUSR1 \
    train.py "$@" --init_from=auto &
STEP=$!
TIME_IS_UP=0
trap 'TIME_IS_UP=1; scancel --signal=USR1 "$SLURM_JOB_ID"' USR1
wait "$STEP" && CODE=0 || CODE=$?
if [ "$TIME_IS_UP" = 1 ]; then  # the trap ended the first wait, the ranks are saving
    wait "$STEP" || true
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$CODE"
