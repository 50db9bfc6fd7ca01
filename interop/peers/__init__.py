"""Drivers of other TLS stacks, and the deliberately weak endpoints of the controls."""
