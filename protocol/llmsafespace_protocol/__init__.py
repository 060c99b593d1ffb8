"""What gateway, agents, operator and SDK say to each other: frames, proof, kernel messages, requests.

It depends on msgspec alone, and everything else may import it. `docs/agent-protocol.md` describes it.
"""
