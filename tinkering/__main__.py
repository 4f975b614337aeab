"""``python -m tinkering`` is ``tinkering``."""

import sys

from tinkering.cli import main

if __name__ == "__main__":
    sys.exit(main())
