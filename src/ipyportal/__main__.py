"""``python -m ipyportal`` is the ``ipyportal`` command."""

import sys

from ipyportal.cli import main

if __name__ == "__main__":
    sys.exit(main())
