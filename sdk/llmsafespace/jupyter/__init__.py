"""Sandbox kernels in Jupyter applications: a kernel provisioner, and the bridge behind it."""
