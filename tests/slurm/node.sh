#!/bin/bash
# Process 1 of a node: what a machine has of its own. Kill it, and the node has lost its power.
# usage: node.sh NAME ADDRESS
set -eu
hostname "$1"
mount -t tmpfs -o size=1g tmpfs /dev/shm
until ip link set eth0 up 2> /dev/null; do sleep 0.01; done
ip addr add "$2/24" dev eth0
ip link set lo up
echo ready
while :; do sleep 3600 & wait; done
