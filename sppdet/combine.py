import sys

from sppdet.cli.combine import main

if __name__ == "__main__":
    sys.exit(main())
