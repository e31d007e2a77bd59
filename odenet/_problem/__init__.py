"""What is to be solved, with weights along depth and times, and its solution."""
