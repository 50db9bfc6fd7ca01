"""How bytes move: TLS endpoints that negotiate forward-secret key exchange and nothing else."""
