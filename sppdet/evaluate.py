import sys

from sppdet.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
