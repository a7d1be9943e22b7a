"""What follows for a provider from one lease: fetch, run, sign, hand in, be paid. A pure machine and its papers."""
