import sys

from sppdet.cli.rename import main

if __name__ == "__main__":
    sys.exit(main())
