"""Words every part shares: amounts, canonical encoding, hashes, Merkle trees, keys, the machine contract, the root of
errors.

Pure: no clock, randomness, file or socket. Nothing here knows what a market is.
"""
