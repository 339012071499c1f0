"""Measurements of this machine: the step, the loader, and both together."""
