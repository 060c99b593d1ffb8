"""`python -I -S <this folder>`: what is imported comes compiled, so that a keeper starts fast."""

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from keeper.keeping import main  # type: ignore[import-not-found]  # noqa: E402

main()
