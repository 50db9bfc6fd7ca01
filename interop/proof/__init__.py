"""The claims, the attacks on them, and the evidence."""
