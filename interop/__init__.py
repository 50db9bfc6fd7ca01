"""The endpoint as others see it: other stacks, recorders, attackers."""
