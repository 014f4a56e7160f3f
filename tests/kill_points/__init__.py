"""A process killed at every single write, fsync, rename, link and removal of a cycle of steps, log and cuts.

`python -m tests.kill_points` tries them all; tests/kill_points/test_kill_points.py every so manyth.
"""
