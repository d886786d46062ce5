import sys

from sppdet.cli.join import main

if __name__ == "__main__":
    sys.exit(main())
