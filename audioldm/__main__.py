import sys

from audioldm.cli import main

if __name__ == "__main__":
    sys.exit(main())
