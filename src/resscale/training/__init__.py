"""Training: classifier, optimizer, schedule, strategy, checkpoints, preemption, monitoring."""
