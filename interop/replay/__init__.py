"""Replays against live servers: what an attacker in the middle can make an application do again.

An attacker who holds a recording, or the wire itself, but no key, can send bytes twice, late, in
another order, in part, or in another session. What counts is what the application behind the server
executed: never more than its honest clients asked for, and never in another order. `cases` is the
table of attacks, `runner` carries them out, and `model` judges.
"""
