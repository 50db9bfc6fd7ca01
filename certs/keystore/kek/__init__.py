"""Providers of the key-encryption key, which lives outside the store."""
