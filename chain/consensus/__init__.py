"""Consensus: who may add a block, and when it is final (R16, R17). Pure; sees a block as an id and bytes, knows
nothing of accounts.
"""
