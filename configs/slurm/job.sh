#!/usr/bin/env bash
# Workers of a job on a cluster's nodes, an array of them; the nodes reach one PostgreSQL, or are one
# node with SQLite:
#
#     sbatch --array=1-8 --requeue configs/slurm/job.sh postgresql://tandem@db/tales --target M.gguf
#
# What follows the job's URL goes to `tandem generate`. TANDEM is the program. A worker ends well when no
# line is left. One that lost its database or device (69, 75) is queued again, with --requeue; one that
# Slurm ends gives its lines back first.
#SBATCH --job-name=tandem-worker
#SBATCH --signal=TERM@60
set -euo pipefail
url=$1
shift
code=0
srun "${TANDEM:-tandem}" generate --quiet --job "$url" "$@" || code=$?
case $code in
0 | 1) ;; # 1: some lines are errors, which are in the job
69 | 75 | 143) scontrol requeue "$SLURM_JOB_ID" || exit "$code" ;;
*) exit "$code" ;;
esac
