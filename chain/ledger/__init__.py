"""The ledger: a deterministic state machine of accounts, providers, orders and leases (law.md). Pure; knows nothing of
votes.
"""
