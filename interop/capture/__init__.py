"""Recording traffic, and turning captures back into byte streams."""
