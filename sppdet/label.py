import sys

from sppdet.cli.label import main

if __name__ == "__main__":
    sys.exit(main())
