"""Reading TLS from outside: records, messages, key schedules, and the decryptor of sessions.

Sans-IO throughout, and shares no code with what it judges. `session` is where to begin; it needs a
theft (`material`), such as a key log (`key_log`), and tells what it saw (`facts`).
"""

__all__: list[str] = []
