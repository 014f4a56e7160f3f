"""What runs on a GPU: kernels, each beside a reference in torch operations, and tables that live there.

compilation.py alone decides whether kernels or references run; everything here can be imported on any machine.
"""
