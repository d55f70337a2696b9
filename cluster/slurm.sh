#!/usr/bin/env bash
# Runs one command on a Ray cluster that exists as long as the job:
#   sbatch --nodes 4 --gpus-per-node 8 cluster/slurm.sh train /data/curated /data/runs/align --model /data/start \
#     --config cluster/configs/gpu-cluster/train.yaml
# The job exits with the status of the command. A job that was preempted or timed out resumes when it is queued again.
# GPUs: 40 GB or more for `tune` with 8 billion parameters (add your cluster's --constraint or --gres), driver 580 or
# newer.
#SBATCH --job-name=ureca
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=ureca-%j.log
set -euo pipefail

command=${1:?usage: sbatch cluster/slurm.sh COMMAND ARGUMENTS...}
shift

# RDMA pins memory. Slurm passes the limits of this script on to its steps.
ulimit -l unlimited 2>/dev/null || echo "slurm.sh: memlock is limited to $(ulimit -l) KiB: NCCL may fail over RDMA" >&2

# Isolate the clusters of concurrent jobs: each has its own token, port and folder.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
port=$((20000 + SLURM_JOB_ID % 20000))
folder=/tmp/ray-$SLURM_JOB_ID

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
on_head=(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head")
address=$("${on_head[@]}" hostname --ip-address | cut -d' ' -f1):$port

started=()
trap 'kill "${started[@]}" 2>/dev/null || true; wait' EXIT
start() { # run `ray start` in a step; Ray detects the CPUs and GPUs that Slurm has allocated
    "$@" --block --disable-usage-stats &
    started+=($!)
}

start "${on_head[@]}" ray start --head --node-ip-address="${address%:*}" --port="$port" --temp-dir="$folder" \
    --dashboard-host=127.0.0.1
wait_for() { # wait for this number of nodes, which the command takes into account when it starts
    for _ in {1..60}; do
        "${on_head[@]}" python -c "import ray
ray.init('$address', logging_level='ERROR')
raise SystemExit(sum(node['Alive'] for node in ray.nodes()) < $1)" >/dev/null 2>&1 && return
        sleep 2
    done
    echo "slurm.sh: $1 Ray nodes did not start in time; see the log above" >&2
    exit 1
}

wait_for 1
others=$((${#nodes[@]} - 1))
if ((others)); then
    start srun --overlap --nodes="$others" --ntasks="$others" --exclude="$head" ray start --address="$address"
    wait_for "${#nodes[@]}"
fi

RAY_ADDRESS=$address "${on_head[@]}" python -m "ureca.jobs.$command" "$@"
