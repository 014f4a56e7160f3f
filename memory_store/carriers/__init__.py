"""Carriers: ways to bring a request to a shard and its reply back.

One small interface, several carriers behind it.
"""
