"""All measuring: no program of a user needs it, and the wheel does not hold it."""
