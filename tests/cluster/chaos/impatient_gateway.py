"""A gateway as it is, but one that waits seconds where a real one waits minutes.

The first argument says how long a sandbox without a record may live: longer than a create may take here.
"""

from __future__ import annotations

import sys

from llmsafespace_gateway.app import main
from llmsafespace_gateway.backends.kubernetes import cold
from llmsafespace_gateway.sandboxes import reconciliation

if __name__ == "__main__":
    reconciliation.ORPHAN_GRACE = float(sys.argv.pop(1))
    reconciliation.EVERY = 2.0
    cold.OPERATOR_LIMIT = reconciliation.ORPHAN_GRACE / 2
    main()
