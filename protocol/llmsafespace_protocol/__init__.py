"""The wire protocol between gateway, agents, operator and SDK: frames, proof, kernel messages, requests.

The package depends only on msgspec, and every other package may import it. `docs/agent-protocol.md`
describes the protocol.
"""
