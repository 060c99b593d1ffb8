"""The keeper of one sandbox: a process of its own, started with this folder as its program."""
