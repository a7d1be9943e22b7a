"""Decisions of a requester: what to sign, what each outcome costs, whether what came back is right, what to do next.

Pure: time, salts and answers come in as arguments or events. Not here: disk (`requester.store`), network and terminal
(`requester.client`, `requester.cli`).
"""
