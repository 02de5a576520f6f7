"""Two models side by side: states layer by layer, logits by their divergence, and the references to compare with."""
