"""Two models side by side: states layer by layer, logits by their divergence, and the references to compare with."""

__all__ = ["bounds", "reference"]  # the public modules
