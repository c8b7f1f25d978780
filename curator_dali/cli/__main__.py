"""`python -m curator_dali.cli`."""

from __future__ import annotations

import sys

from curator_dali.cli import main

if __name__ == "__main__":
    sys.exit(main())
