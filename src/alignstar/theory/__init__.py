"""Exact worlds: Transfer Q* and Theorem 1 by enumeration in float64. No neural model anywhere below.

`tree` holds the arithmetic of a complete tree of responses, `transfer` the policies and values of the paper, `checks`
its statements (and wrong readings of them, which the checks must catch).
"""
