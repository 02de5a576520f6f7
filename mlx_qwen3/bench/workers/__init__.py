"""What runs in a contestant's own process.

These modules import none of the package's others in the usual way: `process.BOOT` loads them under a name of their
own, since the __init__ of mlx_qwen3 loads a BLAS, which the users of the other contestants do not have.
"""
