"""The rules of each subject: bank, providers, opening, leases. Each row of law.md names itself in the code."""
