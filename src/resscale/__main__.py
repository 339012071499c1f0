"""`python -m resscale`."""

import sys

from resscale.cli import main

if __name__ == "__main__":
    sys.exit(main())
