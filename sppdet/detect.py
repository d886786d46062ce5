import sys

from sppdet.cli.detect import main

if __name__ == "__main__":
    sys.exit(main())
