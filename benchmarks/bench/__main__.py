"""``python -m benchmarks.bench``, or ``make bench``."""

import sys

from benchmarks.bench.command import main

sys.exit(main())
