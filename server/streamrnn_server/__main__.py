"""``python -m streamrnn_server`` is the program ``streamrnn``."""

import sys

from streamrnn_server.cli import main

sys.exit(main())
