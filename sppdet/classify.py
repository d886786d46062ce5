import sys

from sppdet.cli.classify import main

if __name__ == "__main__":
    sys.exit(main())
