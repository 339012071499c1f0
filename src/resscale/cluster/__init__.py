"""Where processes run: ranks, nodes, SLURM."""
