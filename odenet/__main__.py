"""`python -m odenet`: the command line."""

from odenet._jobs.cli import main

if __name__ == "__main__":
    main()
