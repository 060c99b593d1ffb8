"""Files that run in the runtime's interpreter, not in the agent's: `launch.py` and its package."""
