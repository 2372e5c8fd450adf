"""Campaigns against what coldstore promises: processes that are killed, servers that fail, disks that fill up, bytes that are wrong.

Each campaign is a module with one function that takes a seed and a number of runs and returns a `Summary`. `test_torture.py` runs the short
forms with the other tests; `python -m tests.torture` the long ones. What was found is written down in docs/RELIABILITY.md.
"""
