"""One file for each figure or statement of the paper; each defines `REPRODUCTION`."""
