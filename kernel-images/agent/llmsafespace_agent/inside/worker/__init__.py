"""The first process of the code's namespaces: see serving.py."""
