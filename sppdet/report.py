import sys

from sppdet.cli.report import main

if __name__ == "__main__":
    sys.exit(main())
