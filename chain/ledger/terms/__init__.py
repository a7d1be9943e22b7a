"""What two parties sign and the ledger must read or check: order, bid, award, lease, segment record, receipt, storage
receipt, acceptance.

Every struct here is canonical (`chain.base.codec`) and has one domain tag (`chain.base.hashing.Tag`). What never
reaches the chain is `broker.protocol`.
"""
