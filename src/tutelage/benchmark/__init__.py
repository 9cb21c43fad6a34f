"""Benchmarks of what this package makes faster or smaller, on this machine, against a reference in the same run.

There is one module per subject; `sections` lists them as ``tutelage doctor --bench`` prints them. The scripts in
``benchmarks/`` time the same with more rounds and record the results.
"""
