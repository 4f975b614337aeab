"""How members are evaluated: a population and a batch become logits, logits become fitness."""
