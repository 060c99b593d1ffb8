"""The agents' tokens, derived from a key that gateway and operator share: nobody reads a pod's Secret.

Egress tokens are signed with another key (`Settings.egress_key_file`), because the egress proxy knows it as
well.
"""

from __future__ import annotations

import hashlib
import hmac

MIN_KEY_BYTES = 32


def agent_token(key: bytes, owner_uid: str) -> str:
    """Return the token (hex) of the agent whose pod belongs to the WarmPod or Sandbox with this uid.

    Raises ValueError if the key is too short.
    """
    if len(key) < MIN_KEY_BYTES:
        raise ValueError(f"the shared key must have at least {MIN_KEY_BYTES} bytes")
    return hmac.new(key, f"llmsafespace\nagent\n{owner_uid}".encode(), hashlib.sha256).hexdigest()
