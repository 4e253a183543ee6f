"""Real peers for the tests: containerd, nerdctl and dockerd, installed into a cache and run in folders of their own.

Standard library only: `python3 -m tests.testbed install` runs before there is a virtual environment.
"""
