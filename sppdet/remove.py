import sys

from sppdet.cli.remove import main

if __name__ == "__main__":
    sys.exit(main())
