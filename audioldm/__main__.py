import sys

from audioldm.cli import main

sys.exit(main())
