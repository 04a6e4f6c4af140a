"""``python -m igd_core`` is ``igd``."""

import sys

from igd_core.cli.main import main

sys.exit(main())
