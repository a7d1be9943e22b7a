"""The broker as a running part: HTTP API, blob store, journal, and the wiring of auctions to bus and chain.

It decides nothing that `broker.auction` decides.
"""
