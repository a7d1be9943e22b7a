"""Words between requester, broker and provider that never reach the chain: job spec, offers, announcements, declines,
books, API bodies, topics.

Pure. What the ledger must read stands in `chain.ledger.terms`.
"""
