"""One step, the loop over equal steps, the loop with step-size control, dense output and events."""
