"""A finished (or unfinished) run as one self-contained page, and as tables for other programs.

`build` is the entry; the other files each make one part of it. Decodes nothing, loads no model, computes no statistic
of its own: what it shows comes from `alignstar.evaluate`.
"""
