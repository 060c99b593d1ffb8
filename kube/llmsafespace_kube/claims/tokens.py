"""Secrets of pods, derived from one key that gateway and operator share: nobody has to read a pod's Secret.

What signs egress grants is another key (`Settings.egress_key_file`), as the egress proxy has it, too.
"""

from __future__ import annotations

import hashlib
import hmac

LEAST = 32  # bytes of the key


def agent_token(key: bytes, owner_uid: str) -> str:
    """The token (hex) of an agent, whose pod belongs to the WarmPod or Sandbox with this uid."""
    if len(key) < LEAST:
        raise ValueError(f"the shared key must have at least {LEAST} bytes")
    return hmac.new(key, f"llmsafespace\nagent\n{owner_uid}".encode(), hashlib.sha256).hexdigest()
