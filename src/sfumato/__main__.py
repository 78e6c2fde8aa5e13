"""`python -m sfumato`: the command line."""

import sys

from sfumato.interfaces.cli import main

if __name__ == "__main__":
    sys.exit(main())
