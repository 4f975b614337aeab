"""The public entry: a module, a population and inputs become outputs, or fitness."""
