"""``python -m fastbn``."""

import sys

from fastbn._cli import main

if __name__ == "__main__":
    sys.exit(main())
