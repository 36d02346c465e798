"""``python -m wsss_blocks`` is ``wsss``."""

import sys

from wsss_blocks.cli.main import main

sys.exit(main())
