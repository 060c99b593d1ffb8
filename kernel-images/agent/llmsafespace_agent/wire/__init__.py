"""What gateway and agent say to each other: frames, the mutual proof, kernel messages, requests.

The gateway imports this package and nothing else of the agent. `docs/agent-protocol.md` describes it.
"""
