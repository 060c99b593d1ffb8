"""What gateway and agent say to each other: frames, the mutual proof, kernel messages, requests.

Beside this package the gateway imports of the agent only `allocator`. `docs/agent-protocol.md` describes it.
"""
