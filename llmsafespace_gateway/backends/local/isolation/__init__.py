"""What a sandbox sees and may do: its root, its system calls, its command line. Pure functions."""
