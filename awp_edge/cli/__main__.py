"""Run the command line as `python -m awp_edge.cli`."""

import sys

from .app import main

if __name__ == "__main__":
    sys.exit(main())
