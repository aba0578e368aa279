"""Demo: real handwritten digits on textured backgrounds, and small networks with planted faults.

The same generator is the fault bench: fault kinds and strengths are parameters, so that what an examination finds can
be compared with what was planted.
"""
