"""What one step computes: for one set of weights, and for members around a centre."""
