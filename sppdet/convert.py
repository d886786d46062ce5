import sys

from sppdet.cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
