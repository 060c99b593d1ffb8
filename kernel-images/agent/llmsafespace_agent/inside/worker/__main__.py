"""`python -I -S <this folder> FD`: the worker of a sandbox; FD is its socket to the agent."""

import os
import sys

sys.path[0] = os.path.abspath(__file__).rsplit("/", 4)[0]

from llmsafespace_agent.inside.worker.serving import main  # noqa: E402

main(int(sys.argv[1]))
