"""What this package makes faster or smaller, timed on the machine at hand against its reference in the same run.

One module per subject; `sections` lists them as ``tutelage doctor --bench`` prints them. The scripts in ``benchmarks/``
time the same with more rounds and record it.
"""
