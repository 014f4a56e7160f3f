"""What the project is fast at, and against what: `python -m benchmarks NAME`.

Every peer and every limit of the machine is measured in the same run, on the same work, in turn with ours, and
only after its results have been found equal to ours. A ratio is the median over pairs of neighbouring samples.
`targets.py` lists the ratios that must hold; `report.py` writes docs/performance.md from measured files.
"""
