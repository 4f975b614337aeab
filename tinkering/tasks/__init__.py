"""What a generation is rated on: the only part that knows both data and evaluation."""
