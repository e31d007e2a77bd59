"""Work-precision diagrams: error against field evaluations and against seconds, by every backend side by side."""
