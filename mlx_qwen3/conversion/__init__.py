"""A checkpoint in, a checkpoint out, with a certificate: `convert.convert` writes one, `verify.verify` checks it.

plan (how every tensor is made) -> transform, quantize (its bytes) -> shards (files) in staging -> certificate
"""
