"""What the seam asks of a network: measure, examine, train."""
