#!/usr/bin/env bash
# A run on four nodes of 8 GPUs:  sbatch docker/slurm.sh [OVERRIDE ...]
#SBATCH --job-name=smartrag
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=48
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@240
set -euo pipefail
: "${SMARTRAG_RUNS:?names a folder that all nodes share}" "${SMARTRAG_CACHE:?names a folder that all nodes share}"
cd "$SLURM_SUBMIT_DIR"
export PATH="$PWD/.venv/bin:$PATH"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$SMARTRAG_RUNS/.token-$SLURM_JOB_ID"
export RAY_TMPDIR="/tmp/ray-$SLURM_JOB_ID" RAY_USAGE_STATS_ENABLED=0 RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
driver="$SMARTRAG_RUNS/.driver-$SLURM_JOB_ID" # its process id; it runs on the node of this script, the first
trap 'rm -f "$RAY_AUTH_TOKEN_PATH" "$driver"' EXIT
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH")

# Before the time is up, and on `scancel --batch --signal=TERM`, the driver alone is told: it needs the Ray to save.
trap 'kill -TERM "$(cat "$driver")"' TERM
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head="${nodes[0]}:6379"
# shellcheck disable=SC2016  # the inner shell expands
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" ray symmetric-run --address "$head" --min-nodes "$SLURM_NNODES" \
  --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_ON_NODE" -- \
  bash -c 'echo $$ > "$0" && exec "$@"' "$driver" \
  python launch/train.py +experiment=hotpotqa cluster=multi_node cluster.address="$head" "$@" &
until wait "$!"; do
  status=$?
  kill -0 "$!" 2> /dev/null || exit "$status" # else the signal has ended the wait, not the run
done
