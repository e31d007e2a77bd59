"""Gradient methods as data: their options, what they cost, and schedules of checkpoints."""
