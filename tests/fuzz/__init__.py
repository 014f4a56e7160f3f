"""Every decoder under inputs that nobody would send: refusals are clear, and there is no crash, no hang, no large memory.

`python -m tests.fuzz --inputs 1000000` (or `make fuzz`); tests/fuzz/test_fuzz.py runs a short form.
"""
