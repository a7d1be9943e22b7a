"""What a provider answers to an announced order: capacity, pricing, policy, and the desk that joins them.

Pure: time, salts and the chain's figures come in as arguments.
"""
