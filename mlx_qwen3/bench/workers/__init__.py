"""What runs in a contestant's own process.

`process.BOOT` loads these modules as a package of their own, so that mlx_qwen3 is not imported with them. Its __init__
loads a BLAS, which users of the other contestants do not have.
"""
