import sys

from sppdet.cli.check import main

if __name__ == "__main__":
    sys.exit(main())
