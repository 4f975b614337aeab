"""How members are chosen: a strategy asks for a population and is told its fitness."""
