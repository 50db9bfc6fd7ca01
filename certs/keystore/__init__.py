"""The key store: named, versioned keys sealed under a key-encryption key (KEK)."""
