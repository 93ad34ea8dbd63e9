"""Starts a front process; `service.front.fronts` calls it, nobody else can."""

import sys

from service.front.server import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
