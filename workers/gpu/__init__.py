"""Kernels of the GPU, each beside a reference in torch operations.

compilation.py alone decides whether kernels or references run; everything here can be imported on any machine.
"""
