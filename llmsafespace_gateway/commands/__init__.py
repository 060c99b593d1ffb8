"""The subcommands of `llmsafespace-gateway` besides `serve`: for the operator, who owns the data dir.

Each is a JupyterApp of its own, loaded when it is asked for. They take the gateway's own configuration
file and its options for the store, so `--config FILE` means the same everywhere.
"""
