import sys

from sppdet.cli.add import main

if __name__ == "__main__":
    sys.exit(main())
