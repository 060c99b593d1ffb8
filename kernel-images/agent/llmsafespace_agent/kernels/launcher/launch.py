"""Entry point in the runtime's interpreter: `python launch.py template FD`, or `kernel FD`."""

import importlib
import os
import sys

# This folder was put first on the path; after our own package is found it must not shadow the user's modules.
_HERE = os.path.dirname(os.path.abspath(__file__))

if __name__ == "__main__":
    sys.path[:] = [_HERE, *(entry for entry in sys.path if entry not in (_HERE, ""))]
    main = importlib.import_module("llmsafespace_kernel.main").main
    sys.path.remove(_HERE)
    main(sys.argv[1:])
