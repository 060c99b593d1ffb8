"""`python -m llmsafespace_agent`: see server/main.py."""

import sys

from llmsafespace_agent.server.main import main

sys.exit(main())
