"""The provider's shell: settings, wiring, disk and network around the desk (`provider.bidding`), the work machines
(`provider.work`) and the sandbox.
"""
