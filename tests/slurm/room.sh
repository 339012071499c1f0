#!/bin/bash
# Process 1 of a cluster's namespaces: the head node and the network that all nodes hang on.
# usage: room.sh HOSTS_FILE, with a pipe as its input
# Whoever holds the other end of the pipe keeps the cluster alive: once it is closed, or its holder
# killed, this process ends, and the kernel ends every process of the cluster with it.
set -eu
hostname head
mount --bind "$1" /etc/hosts
ip link set lo up
ip link add br0 type bridge
ip addr add 10.77.0.1/24 dev br0
ip link set br0 up
echo ready
# Not `cat`: bash reaps the processes that lose their parents, as process 1 must.
while read -r _; do :; done
