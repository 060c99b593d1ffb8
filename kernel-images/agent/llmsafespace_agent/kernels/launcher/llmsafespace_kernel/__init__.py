"""Our kernels, inside the runtime: the template that is forked, the parked child, and what runs in it.

Python 3.9 and later; needs only the standard library and ipykernel.
"""
