"""Fused operations behind the blocks: a reference, fast forms of it, and the choice among them.

Blocks check their arguments and call these; nothing here is meant to be called from outside. The
reference of an operation is the plain chain of its formula and decides what is right. Only
``ops.triton`` imports triton, and only when it is about to run.
"""
