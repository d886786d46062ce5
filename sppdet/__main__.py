import sys

from sppdet.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
