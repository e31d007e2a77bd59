"""The command line: a folder a job, and what several jobs share."""
