#!/usr/bin/env bash
# A target over nodes of a cluster, as one heterogeneous job: this script and the first stage run on the
# node of the first component, a stage worker on each node of the second. To be submitted from a
# folder that all nodes share:
#
#     sbatch configs/slurm/tandem.sh --target M.gguf --in prompts.jsonl --out results.jsonl
#
# What follows the script's name goes to `tandem generate`. LOCAL and REMOTE are the SPECs of devices
# here and there, PORT is what workers listen at, TANDEM is the program.
#SBATCH --job-name=tandem
#SBATCH --nodes=1 --ntasks=1
#SBATCH hetjob
#SBATCH --nodes=1 --ntasks-per-node=1
set -euo pipefail
tandem=${TANDEM:-tandem} local=${LOCAL:-host} remote=${REMOTE:-host} port=${PORT:-5556}

# Keys of this job alone, which go with it: nodes are shared, and so is the network between them. One
# pair serves all.
TANDEM_KEYS_DIR=$(mktemp -d "$SLURM_SUBMIT_DIR/tandem-keys-$SLURM_JOB_ID.XXXXXX")
export TANDEM_KEYS_DIR
trap 'kill "${step:-}" 2>/dev/null || true; wait; rm -rf "$TANDEM_KEYS_DIR"' EXIT
"$tandem" keys new job | "$tandem" keys allow job -

srun --het-group=1 "$tandem" stage --device "$remote" --bind "tcp://*:$port" &
step=$!

arguments=(--device "$local")
for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST_HET_GROUP_1"); do
    arguments+=(--host "$node=tcp://$node:$port,job" --device "$node/$remote")
done
"$tandem" generate "${arguments[@]}" "$@"
