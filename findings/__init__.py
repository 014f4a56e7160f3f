"""The findings of the paper that introduced product-key memories, measured again at a small scale.

`python -m findings run NAME` trains what a finding compares, each run a `pkm train` of findings/base.yaml with other
settings, and keeps the figures in docs/results/NAME.json; `python -m findings report` writes docs/results.md from them.

The paper: Lample, Sablayrolles, Ranzato, Denoyer, Jégou, "Large Memory Layers with Product Keys", NeurIPS 2019
(arXiv:1907.05242).
"""
