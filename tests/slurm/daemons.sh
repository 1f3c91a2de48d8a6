#!/usr/bin/env bash
# The first process of the test cluster's namespaces: DIRECTORY GPUS NODE... It brings up what SLURM's daemons need, and munged;
# it ends as munged does.
set -euo pipefail
root=$1 gpus=$2 nodes=("${@:3}")
ip link set lo up
# getaddrinfo resolves nothing where 127.0.0.1 is the only address.
ip address add 127.0.0.2/8 dev lo
mkdir -p /etc/slurm
mount --bind "$root/slurm" /etc/slurm
mkdir "$root/state" "${nodes[@]/#/$root/spool-}"
for ((gpu = 0; gpu < gpus; gpu++)); do
    mknod "$root/gpu$gpu" c 1 3
done
(umask 077 && head -c 128 /dev/urandom > "$root/munge.key")
munged --foreground --force --key-file="$root/munge.key" --socket="$root/munge.socket" --pid-file="$root/munged.pid" \
    --seed-file="$root/munge.seed" &
wait $!
