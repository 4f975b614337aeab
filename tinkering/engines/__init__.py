"""Who runs the steps: engines of one contract in one table, their plans, and their threads."""
