"""What shells share: driver of machines, journal, clock, database, key files, settings, logs, service life cycle.
Never imported by pure modules.
"""
